"""Prompts that begin alike: what is cached, for whom, and what usage and metrics say of it."""

import grpc
import pytest

BLOCK = 16


@pytest.fixture
def document(server, inference, needle, api):
    """Token ids of a document that no other test sends."""
    prompt, _ = needle(2000, seed=20261)
    answer = inference.Tokenize(api.inference_pb2.TokenizeRequest(text=prompt))
    return list(answer.token_ids)


def ask(api, inference, token_ids, **fields):
    pb = api.inference_pb2
    request = pb.GenerateStreamRequest(token_ids=pb.TokenIds(ids=token_ids),
                                       sampling=pb.SamplingParams(temperature=0),
                                       stopping=pb.StoppingCriteria(max_new_tokens=8), **fields)
    events = list(inference.GenerateStream(request))
    tokens = [token for event in events for token in event.delta.token_ids]
    return events[0].started, tokens, events[-1].finished


def test_a_second_question_finds_the_document_cached(api, server, inference, document):
    before = server.metrics()
    started, _, first = ask(api, inference, document)
    assert started.cached_prompt_tokens == first.usage.cached_prompt_tokens == 0
    # The same document to its last blocks, then another end.
    question = document[:-20] + document[:7]
    started, tokens, second = ask(api, inference, question)
    expected = (len(document) - 20) // BLOCK * BLOCK
    assert started.cached_prompt_tokens == second.usage.cached_prompt_tokens == expected
    assert (second.timings.time_to_first_token_seconds <
            first.timings.time_to_first_token_seconds / 2)
    _, uncached_tokens, uncached = ask(api, inference, question, cache_salt="nobody else's")
    assert uncached.usage.cached_prompt_tokens == 0
    assert tokens == uncached_tokens

    after = server.metrics()

    def increase(name):
        return after[name] - before[name]

    assert increase("tidal_prefix_cache_queried_tokens_total") == len(document) + 2 * len(question)
    assert increase("tidal_prefix_cache_hit_tokens_total") == expected
    assert increase('tidal_prompt_tokens_total{source="cached"}') == expected
    assert increase('tidal_prompt_tokens_total{source="computed"}') == (
        len(document) + 2 * len(question) - expected)
    assert after['tidal_kv_blocks{state="used"}'] == 0
    assert after['tidal_kv_blocks{state="cached"}'] >= expected // BLOCK


def test_a_salt_is_a_cache_of_its_own(api, inference, document):
    salted = {"cache_salt": "tenant a"}
    assert ask(api, inference, document, **salted)[2].usage.cached_prompt_tokens == 0
    assert ask(api, inference, document, **salted)[2].usage.cached_prompt_tokens > 0
    other = ask(api, inference, document, cache_salt="tenant b")
    assert other[2].usage.cached_prompt_tokens == 0


def test_a_salt_has_a_limit(api, inference):
    with pytest.raises(grpc.RpcError) as error:
        ask(api, inference, [1, 2, 3], cache_salt="x" * 129)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "cache_salt: has 129 bytes, more than 128" in error.value.details()


def test_caching_can_be_turned_off(api, start_server, needle):
    server = start_server("--prefix_caching=false")
    with server.channel() as channel:
        inference = server.inference(channel)
        for _ in range(2):
            finished = ask(api, inference, list(range(3, 200)))[2]
            assert finished.usage.cached_prompt_tokens == 0
    assert server.metrics()['tidal_kv_blocks{state="cached"}'] == 0
    assert server.stop() == 0
