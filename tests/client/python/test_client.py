"""tidal_client.Client against the real server."""

import concurrent.futures
import threading

import grpc
import pytest


@pytest.fixture
def client(tidal_client, server):
    with tidal_client.Client(server.address()) as connected:
        yield connected


@pytest.fixture
def greedy(tidal_client):
    """Arguments of a short, deterministic answer."""
    return {"sampling": tidal_client.Sampling(temperature=0),
            "stopping": tidal_client.Stopping(max_new_tokens=8, ignore_eos=True)}


def test_generate_gives_text_usage_timings_and_attention(tidal_client, client, prompt, greedy):
    answer = client.generate(prompt, request_id="one", **greedy,
                             attention=tidal_client.Attention("tidal", token_budget=64))
    assert answer.request_id == "one"
    assert len(answer.choices) == 1 and answer.text == answer.choices[0].text != ""
    assert len(answer.choices[0].token_ids) == answer.usage.generated_tokens == 8
    assert answer.choices[0].finish_reason is tidal_client.FinishReason.LENGTH
    assert answer.choices[0].matched_stop is None
    assert answer.usage.prompt_tokens > 300
    assert 0 < answer.usage.attended_share < 1
    assert 0 < answer.timings.time_to_first_token_seconds <= answer.timings.end_to_end_seconds
    assert answer.attention.mode is tidal_client.AttentionMode.TIDAL
    assert answer.attention.token_budget == 64
    assert answer.attention.selection_layers == (2, 5)
    assert answer.attention.selection_scope in {"query_head", "kv_head"}


def test_attention_is_chosen_for_each_request(tidal_client, client, prompt, greedy):
    answer = client.generate(prompt, attention=tidal_client.Attention(mode="full"), **greedy)
    assert answer.attention.mode is tidal_client.AttentionMode.FULL
    assert answer.attention.selection_scope is None
    assert answer.usage.attended_share == 1


def test_a_stream_tells_the_same_as_generate(tidal_client, client, prompt, greedy):
    events = list(client.stream(prompt, **greedy))
    assert isinstance(events[0], tidal_client.Started)
    assert isinstance(events[-1], tidal_client.Finished)
    deltas = [event for event in events if isinstance(event, tidal_client.Delta)]
    answer = client.generate(prompt, **greedy)
    assert "".join(delta.text for delta in deltas) == answer.text
    assert sum((delta.token_ids for delta in deltas), ()) == answer.choices[0].token_ids
    assert deltas[-1].finish_reason is tidal_client.FinishReason.LENGTH
    assert events[-1].usage.generated_tokens == 8
    assert events[0].prompt_tokens == events[-1].usage.prompt_tokens
    assert "".join(client.stream(prompt, **greedy).text()) == answer.text


def test_progress_of_a_long_prompt_ends_at_its_length(tidal_client, client, greedy):
    ids = [2 + i % 500 for i in range(1500)]
    progress = [event for event in client.stream(ids, cache_salt="progress", **greedy)
                if isinstance(event, tidal_client.Progress)]
    assert progress  # a slow reader gets the last one only
    assert progress[-1].prefilled_tokens == progress[-1].total_tokens == 1500


def test_token_ids_are_a_prompt_like_their_text(client, prompt, greedy):
    ids = client.tokenize(prompt).ids
    assert client.generate(ids, **greedy).text == client.generate(prompt, **greedy).text


def test_tokenize_and_detokenize_are_inverse(client):
    tokens = client.tokenize("the golden river", add_special_tokens=False)
    assert b"".join(tokens.tokens) == b"the golden river"
    assert client.detokenize(tokens.ids) == "the golden river"
    with_begin = client.tokenize("the golden river")
    assert with_begin.ids[1:] == tokens.ids


def test_choices_log_probabilities_and_seed_arrive(tidal_client, client, prompt):
    answer = client.generate(
        prompt, num_choices=2, priority=5, output=tidal_client.Output(num_top_logprobs=2),
        sampling=tidal_client.Sampling(temperature=1.0, seed=7, logit_bias={5: -3.0}),
        stopping=tidal_client.Stopping(max_new_tokens=3, ignore_eos=True))
    assert answer.seed == 7
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert len(choice.logprobs) == 3
        for token, logprob in zip(choice.token_ids, choice.logprobs):
            assert logprob.token_id == token and logprob.logprob <= 0 and len(logprob.top) == 2


def test_a_stop_string_ends_the_text_and_is_named(tidal_client, client, prompt):
    sampling = tidal_client.Sampling(temperature=0)
    whole = client.generate(prompt, sampling=sampling,
                            stopping=tidal_client.Stopping(max_new_tokens=6, ignore_eos=True))
    word = whole.text.split()[1]
    answer = client.generate(prompt, sampling=sampling,
                             stopping=tidal_client.Stopping(max_new_tokens=6, ignore_eos=True,
                                                            stop_strings=[word]))
    assert answer.choices[0].finish_reason is tidal_client.FinishReason.STOP_STRING
    assert answer.choices[0].matched_stop == word
    assert word not in answer.text


def test_model_info_tells_shapes_and_limits(tidal_client, client):
    model = client.model_info()
    assert model.model_name == "needle"
    assert model.num_layers == 8 and model.head_dim > 0 and model.vocab_size > 1000
    assert len(model.eos_token_ids) >= 1
    assert model.default_attention.mode is tidal_client.AttentionMode.TIDAL
    assert 0 < model.limits.max_model_len <= model.limits.kv_cache_tokens


def test_health_of_the_server_and_of_services(tidal_client, client):
    assert client.health() is tidal_client.HealthStatus.SERVING
    assert client.health("liveness") is tidal_client.HealthStatus.SERVING
    assert client.health("no.such.Service") is tidal_client.HealthStatus.SERVICE_UNKNOWN


def test_an_invalid_field_is_named(tidal_client, client):
    with pytest.raises(tidal_client.InvalidArgumentError) as caught:
        client.generate("hello", sampling=tidal_client.Sampling(top_p=2.0))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.field_violations] == ["sampling.top_p"]
    assert "2" in caught.value.message and "INVALID_ARGUMENT" in str(caught.value)
    with pytest.raises(tidal_client.InvalidArgumentError):
        list(client.stream("hello", sampling=tidal_client.Sampling(top_p=2.0)))


def test_what_no_field_can_hold_is_refused_here(tidal_client, client):
    with pytest.raises(ValueError, match="sparse"):
        client.generate("hello", attention=tidal_client.Attention(mode="sparse"))
    with pytest.raises(TypeError):
        client.generate("hello", stopping=tidal_client.Stopping(max_new_tokens="many"))


def test_a_passed_timeout_is_deadline_exceeded(tidal_client, client, prompt):
    with pytest.raises(tidal_client.DeadlineExceededError):
        client.generate(prompt, timeout=0.001)


def test_quest_is_served_and_echoed(tidal_client, client):
    generation = client.generate("hello", attention=tidal_client.Attention(mode="quest"),
                                 stopping=tidal_client.Stopping(max_new_tokens=3, ignore_eos=True))
    assert generation.attention.mode == "quest"
    assert len(generation.choices[0].token_ids) == 3


def test_nobody_there_is_unavailable(tidal_client):
    with tidal_client.Client("127.0.0.1:1") as client:
        with pytest.raises(tidal_client.UnavailableError):
            client.model_info(timeout=10)


def _endless(tidal_client):
    return tidal_client.Stopping(max_new_tokens=12000, ignore_eos=True)


def test_leaving_a_stream_ends_it_at_the_server(tidal_client, client):
    with client.stream("hello", request_id="left", stopping=_endless(tidal_client)) as stream:
        for event in stream:
            if isinstance(event, tidal_client.Delta):
                break
    # Its id is free again once the request is gone; a moment may pass until then.
    answer = None
    for _ in range(200):
        try:
            answer = client.generate("hello", request_id="left",
                                     stopping=tidal_client.Stopping(max_new_tokens=1))
            break
        except tidal_client.AlreadyExistsError:
            threading.Event().wait(0.05)
    assert answer is not None and answer.request_id == "left"


def test_a_cancelled_stream_raises_and_a_live_id_is_refused(tidal_client, client):
    stream = client.stream("hello", request_id="live", stopping=_endless(tidal_client))
    events = iter(stream)
    assert isinstance(next(events), tidal_client.Started)
    with pytest.raises(tidal_client.AlreadyExistsError):
        client.generate("hello", request_id="live")
    stream.cancel()
    with pytest.raises(tidal_client.CancelledError):
        for _ in events:
            pass


def test_threads_share_a_client(client, prompt, greedy):
    expected = client.generate(prompt, **greedy).text
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.generate(prompt, **greedy).text, range(8)))
    assert answers == [expected] * 8
