"""What a client gets: answers, events, sampling options, limits."""

import grpc
import pytest


def greedy(api, **fields):
    pb = api.inference_pb2
    return pb.SamplingParams(temperature=0, **fields)


def stream_request(api, prompt, mode=None, budget=None, **fields):
    pb = api.inference_pb2
    request = pb.GenerateStreamRequest(text=prompt, sampling=greedy(api), **fields)
    if mode is not None:
        request.attention.mode = mode
    if budget is not None:
        request.attention.token_budget = budget
    return request


@pytest.mark.parametrize("num_tokens", [100, 400, 2000, 6000])
@pytest.mark.parametrize("mode", ["FULL", "TIDAL"])
def test_finds_the_passphrase(api, inference, needle, text_of, num_tokens, mode):
    mode = api.attention_pb2.AttentionMode.Value(f"ATTENTION_MODE_{mode}")
    for seed in range(3):
        prompt, answer = needle(num_tokens, depth=0.2 + 0.3 * seed, seed=seed)
        request = stream_request(api, prompt, mode=mode, budget=128)
        assert text_of(inference.GenerateStream(request)) == answer


def test_quest_and_corrected_answers_are_the_right_ones(api, server, inference, needle, text_of):
    before = server.metrics()
    prompt, answer = needle(2500)
    quest = stream_request(api, prompt, mode=api.attention_pb2.ATTENTION_MODE_QUEST, budget=1024)
    events = list(inference.GenerateStream(quest))
    assert list(events[0].started.attention.full_layers) == [0, 1]
    assert list(events[0].started.attention.selection_layers) == []
    assert text_of(events) == answer
    corrected = stream_request(api, prompt, mode=api.attention_pb2.ATTENTION_MODE_TIDAL, budget=64)
    corrected.attention.correction_interval = 3
    events = list(inference.GenerateStream(corrected))
    assert events[0].started.attention.correction_interval == 3
    assert text_of(events) == answer
    # Seven tokens are generated, and those after the third and the sixth are decoded as corrections,
    # which compute the two before them anew.
    after = server.metrics()
    assert after["tidal_corrections_total"] - before["tidal_corrections_total"] == 2
    assert after["tidal_corrected_tokens_total"] - before["tidal_corrected_tokens_total"] == 4


def test_stream_tells_the_whole_story(api, inference, needle):
    prompt, answer = needle(3000)
    events = list(inference.GenerateStream(stream_request(api, prompt, budget=64)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"progress", "delta"}
    started, finished = events[0].started, events[-1].finished
    progress = [event.progress for event in events if event.HasField("progress")]
    assert progress[-1].prefilled_tokens == progress[-1].total_tokens == started.prompt_tokens
    assert started.request_id and started.attention.token_budget == 64
    assert list(started.attention.selection_layers) == [2, 5]
    token_ids = [token for event in events for token in event.delta.token_ids]
    assert finished.usage.generated_tokens == len(token_ids)
    assert finished.usage.prompt_tokens == started.prompt_tokens
    assert finished.finish_reason == api.inference_pb2.FINISH_REASON_END_OF_SEQUENCE
    usage, timings = finished.usage, finished.timings
    assert 0.4 < usage.attended_tokens / usage.available_tokens < 0.6
    phases = timings.queue_seconds + timings.prefill_seconds + timings.decode_seconds
    assert phases == pytest.approx(timings.end_to_end_seconds, abs=1e-6)
    assert 0 < timings.time_to_first_token_seconds <= timings.end_to_end_seconds


def test_unary_answers_what_the_stream_does(api, inference, needle):
    prompt, answer = needle(500)
    answered = inference.Generate(
        api.inference_pb2.GenerateRequest(text=prompt, sampling=greedy(api)))
    assert [choice.text for choice in answered.choices] == [answer]
    assert answered.usage.generated_tokens == len(answered.choices[0].token_ids)


def test_same_seed_same_text(api, inference):
    pb = api.inference_pb2

    def generate(seed):
        request = pb.GenerateRequest(text="The golden river", sampling=pb.SamplingParams(
            temperature=1.5, seed=seed), stopping=pb.StoppingCriteria(max_new_tokens=40))
        return inference.Generate(request).choices[0].text

    assert generate(7) == generate(7)
    assert len({generate(seed) for seed in range(5)}) == 5


def test_a_seed_of_the_servers_own_is_echoed_and_repeats(api, inference):
    pb = api.inference_pb2
    stopping = pb.StoppingCriteria(max_new_tokens=20)
    first = inference.Generate(pb.GenerateRequest(text="The", stopping=stopping))
    again = inference.Generate(pb.GenerateRequest(
        text="The", stopping=stopping, sampling=pb.SamplingParams(seed=first.seed)))
    assert again.choices[0].text == first.choices[0].text


def test_text_and_its_token_ids_are_the_same_prompt(api, inference, needle):
    pb = api.inference_pb2
    prompt, answer = needle(300)
    ids = inference.Tokenize(pb.TokenizeRequest(text=prompt)).token_ids
    answered = inference.Generate(
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=greedy(api)))
    assert answered.choices[0].text == answer


def test_tokenize_and_detokenize_agree(api, inference):
    pb = api.inference_pb2
    text = "The golden river\n\tcafé \u4e16\u754c \U0001f469\u200d\U0001f4bb 12345"
    tokenized = inference.Tokenize(pb.TokenizeRequest(text=text, add_special_tokens=False))
    assert b"".join(tokenized.tokens).decode() == text
    detokenized = inference.Detokenize(pb.DetokenizeRequest(token_ids=tokenized.token_ids))
    assert detokenized.text == text


def test_stop_string_ends_the_text_before_it(api, inference, needle):
    pb = api.inference_pb2
    prompt, answer = needle(300)
    stop = answer.split()[2]
    answered = inference.Generate(pb.GenerateRequest(
        text=prompt, sampling=greedy(api), stopping=pb.StoppingCriteria(stop_strings=[stop])))
    choice = answered.choices[0]
    assert choice.text == answer[:answer.index(stop)]
    assert choice.finish_reason == pb.FINISH_REASON_STOP_STRING
    assert choice.matched_stop.text == stop


def test_length_and_minimum_length_are_kept(api, inference, needle):
    pb = api.inference_pb2
    prompt, answer = needle(300)
    answered = inference.Generate(pb.GenerateRequest(
        text=prompt, sampling=greedy(api), stopping=pb.StoppingCriteria(max_new_tokens=3)))
    assert answered.usage.generated_tokens == 3
    assert answered.choices[0].finish_reason == pb.FINISH_REASON_LENGTH
    answered = inference.Generate(pb.GenerateRequest(
        text=prompt, sampling=greedy(api),
        stopping=pb.StoppingCriteria(min_new_tokens=20, max_new_tokens=30)))
    assert answered.usage.generated_tokens >= 20


def test_logprobs_are_probabilities_and_the_greedy_token_is_on_top(api, inference, needle):
    pb = api.inference_pb2
    prompt, _ = needle(300)
    answered = inference.Generate(pb.GenerateRequest(
        text=prompt, sampling=greedy(api), output=pb.OutputOptions(num_top_logprobs=3)))
    choice = answered.choices[0]
    assert len(choice.logprobs) == len(choice.token_ids)
    for entry, token_id in zip(choice.logprobs, choice.token_ids):
        assert entry.token_id == token_id == entry.top[0].token_id
        assert entry.logprob == entry.top[0].logprob <= 0
        assert [top.logprob for top in entry.top] == sorted(
            (top.logprob for top in entry.top), reverse=True)
        assert len(entry.top) == 3


def test_logit_bias_forces_a_token(api, inference):
    pb = api.inference_pb2
    token = inference.Tokenize(
        pb.TokenizeRequest(text=" velvet", add_special_tokens=False)).token_ids
    assert len(token) == 1
    answered = inference.Generate(pb.GenerateRequest(
        text="The golden river", sampling=greedy(api, logit_bias={token[0]: 100}),
        stopping=pb.StoppingCriteria(max_new_tokens=3)))
    assert answered.choices[0].text == " velvet velvet velvet"


def test_model_info_tells_the_limits(api, server):
    with server.channel() as channel:
        stub = api.model_pb2_grpc.ModelServiceStub(channel)
        info = stub.GetModelInfo(api.model_pb2.GetModelInfoRequest())
    assert info.model_name == "needle" and info.architecture == "LlamaForCausalLM"
    assert (info.num_layers, info.num_query_heads, info.num_kv_heads) == (8, 4, 2)
    assert info.limits.kv_cache_tokens == 256 * 1024 * 1024 // 8192
    assert info.limits.max_model_len == info.limits.kv_cache_tokens
    assert info.default_attention.mode == api.attention_pb2.ATTENTION_MODE_TIDAL


def test_unknown_services_are_unimplemented(server):
    with server.channel() as channel:
        call = channel.unary_unary("/tidal.inference.v9.Nothing/Call")
        with pytest.raises(grpc.RpcError) as error:
            call(b"")
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
