"""Several choices of one prompt: each is what a request with its own seed gets."""

import pytest


def request_fields(api, prompt, seed, **fields):
    pb = api.inference_pb2
    return dict(text=prompt, sampling=pb.SamplingParams(temperature=1.5, seed=seed),
                stopping=pb.StoppingCriteria(max_new_tokens=24, ignore_eos=True), **fields)


@pytest.fixture
def prompt(needle):
    return needle(1000, seed=31)[0]


def test_choices_are_those_of_successive_seeds(api, inference, prompt):
    pb = api.inference_pb2
    answer = inference.Generate(
        pb.GenerateRequest(**request_fields(api, prompt, seed=70, num_choices=4)))
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.generated_tokens == 4 * 24
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) > 1, "the seeds differ"
    for index, text in enumerate(texts):
        alone = inference.Generate(
            pb.GenerateRequest(**request_fields(api, prompt, seed=70 + index)))
        assert alone.choices[0].text == text


def test_a_stream_carries_all_choices_and_computes_the_prompt_once(api, server, inference, needle):
    pb = api.inference_pb2
    prompt = needle(1500, seed=32)[0]
    computed = 'tidal_prompt_tokens_total{source="computed"}'
    before = server.metrics()[computed]
    texts, endings = {}, {}
    for event in inference.GenerateStream(pb.GenerateStreamRequest(
            **request_fields(api, prompt, seed=5, num_choices=16))):
        delta = event.delta
        if event.WhichOneof("event") == "delta":
            texts[delta.choice_index] = texts.get(delta.choice_index, "") + delta.text
            if delta.finish_reason:
                endings[delta.choice_index] = delta.finish_reason
    usage = event.finished.usage
    assert sorted(texts) == list(range(16))
    assert endings == dict.fromkeys(range(16), pb.FINISH_REASON_LENGTH)
    assert usage.generated_tokens == 16 * 24
    assert server.metrics()[computed] - before == usage.prompt_tokens
