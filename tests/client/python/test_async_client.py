"""tidal_client.AsyncClient against the real server."""

import asyncio

import pytest


def run(tidal_client, server, body):
    """Runs body(client) in an event loop of its own, with a client that is closed afterwards."""

    async def whole():
        async with tidal_client.AsyncClient(server.address()) as client:
            return await body(client)

    return asyncio.run(whole())


def greedy(tidal_client, num_tokens=8):
    return {"sampling": tidal_client.Sampling(temperature=0),
            "stopping": tidal_client.Stopping(max_new_tokens=num_tokens, ignore_eos=True)}


def test_concurrent_answers_are_those_of_the_blocking_client(tidal_client, server, prompt):
    async def body(client):
        return await asyncio.gather(*(client.generate(prompt, **greedy(tidal_client))
                                      for _ in range(6)))

    answers = run(tidal_client, server, body)
    with tidal_client.Client(server.address()) as blocking:
        expected = blocking.generate(prompt, **greedy(tidal_client)).text
    assert [answer.text for answer in answers] == [expected] * 6


def test_a_stream_begins_ends_and_carries_the_text(tidal_client, server, prompt):
    async def body(client):
        events = [event async for event in client.stream(prompt, **greedy(tidal_client))]
        pieces = [piece async for piece in client.stream(prompt, **greedy(tidal_client)).text()]
        return events, "".join(pieces)

    events, text = run(tidal_client, server, body)
    assert isinstance(events[0], tidal_client.Started)
    assert isinstance(events[-1], tidal_client.Finished)
    assert text == "".join(event.text for event in events if isinstance(event, tidal_client.Delta))


def test_tokens_model_and_health(tidal_client, server):
    async def body(client):
        tokens = await client.tokenize("the golden river", add_special_tokens=False)
        return (await client.detokenize(tokens.ids), await client.model_info(),
                await client.health(), await client.health("no.such.Service"))

    text, model, health, unknown = run(tidal_client, server, body)
    assert text == "the golden river"
    assert model.model_name == "needle"
    assert health is tidal_client.HealthStatus.SERVING
    assert unknown is tidal_client.HealthStatus.SERVICE_UNKNOWN


def test_errors_are_typed_and_name_the_field(tidal_client, server):
    wrong = {"sampling": tidal_client.Sampling(temperature=-1.0)}

    async def generate(client):
        await client.generate("hello", **wrong)

    async def stream(client):
        async for _ in client.stream("hello", **wrong):
            pass

    for body in (generate, stream):
        with pytest.raises(tidal_client.InvalidArgumentError) as caught:
            run(tidal_client, server, body)
        assert [one.field for one in caught.value.field_violations] == ["sampling.temperature"]


def test_a_cancelled_stream_raises_cancelled(tidal_client, server):
    async def body(client):
        stream = client.stream("hello", **greedy(tidal_client, num_tokens=12000))
        async for event in stream:
            if isinstance(event, tidal_client.Delta):
                stream.cancel()

    with pytest.raises(tidal_client.CancelledError):
        run(tidal_client, server, body)


def test_cancelling_the_task_stays_asyncios(tidal_client, server):
    async def body(client):
        async def read():
            async for _ in client.stream("hello", **greedy(tidal_client, num_tokens=12000)):
                started.set()

        started = asyncio.Event()
        task = asyncio.create_task(read())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(tidal_client, server, body)
