"""Bad requests: the right code, and a message and details that name field, value and limit."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def refusal(call, request, **options):
    """The RpcError that a request is refused with."""
    with pytest.raises(grpc.RpcError) as error:
        answer = call(request, **options)
        if hasattr(answer, "__iter__"):
            list(answer)
    return error.value


def violations(error):
    """{field: description} of the BadRequest in an error's details."""
    details = rpc_status.from_call(error).details
    bad_request = error_details_pb2.BadRequest()
    assert details[0].Unpack(bad_request)
    return {entry.field: entry.description for entry in bad_request.field_violations}


CASES = {
    "temperature above its limit": ({"sampling": {"temperature": 101}}, "sampling.temperature"),
    "temperature below 0": ({"sampling": {"temperature": -0.5}}, "sampling.temperature"),
    "temperature not a number": ({"sampling": {"temperature": float("nan")}},
                                 "sampling.temperature"),
    "top_p of 0": ({"sampling": {"top_p": 0}}, "sampling.top_p"),
    "top_p above 1": ({"sampling": {"top_p": 1.5}}, "sampling.top_p"),
    "negative top_k": ({"sampling": {"top_k": -1}}, "sampling.top_k"),
    "min_p above 1": ({"sampling": {"min_p": 1.1}}, "sampling.min_p"),
    "repetition penalty of 0": ({"sampling": {"repetition_penalty": 0}},
                                "sampling.repetition_penalty"),
    "presence penalty": ({"sampling": {"presence_penalty": 3}}, "sampling.presence_penalty"),
    "frequency penalty": ({"sampling": {"frequency_penalty": -3}}, "sampling.frequency_penalty"),
    "logit bias of an unknown token": ({"sampling": {"logit_bias": {10 ** 6: 1}}},
                                       "sampling.logit_bias"),
    "no new tokens": ({"stopping": {"max_new_tokens": 0}}, "stopping.max_new_tokens"),
    "more than fits": ({"stopping": {"max_new_tokens": 10 ** 6}}, "stopping.max_new_tokens"),
    "minimum above maximum": ({"stopping": {"min_new_tokens": 9, "max_new_tokens": 8}},
                              "stopping.min_new_tokens"),
    "empty stop string": ({"stopping": {"stop_strings": [""]}}, "stopping.stop_strings"),
    "too many stop strings": ({"stopping": {"stop_strings": ["a"] * 17}},
                              "stopping.stop_strings"),
    "stop token out of range": ({"stopping": {"stop_token_ids": [-1]}},
                                "stopping.stop_token_ids"),
    "too many logprobs": ({"output": {"num_top_logprobs": 21}}, "output.num_top_logprobs"),
    "budget of 0": ({"attention": {"token_budget": 0}}, "attention.token_budget"),
    "budget above its limit": ({"attention": {"token_budget": 4097}}, "attention.token_budget"),
    "priority": ({"priority": 101}, "priority"),
    "request id too long": ({"request_id": "x" * 129}, "request_id"),
    "request id with control characters": ({"request_id": "a\nb"}, "request_id"),
    "prompt token out of range": ({"text": None, "token_ids": {"ids": [1, 10 ** 6]}},
                                  "token_ids.ids"),
    "no prompt": ({"text": None}, "prompt"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_field_is_named_with_value_and_limit(api, inference, name):
    fields, field = CASES[name]
    fields = {"text": "The", **fields}
    if fields["text"] is None:
        del fields["text"]
    for method, message in ((inference.Generate, api.inference_pb2.GenerateRequest),
                            (inference.GenerateStream, api.inference_pb2.GenerateStreamRequest)):
        error = refusal(method, message(**fields))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert any(named.startswith(field) for named in violations(error)), violations(error)
        assert field in error.details()


def test_all_bad_fields_are_named_at_once(api, inference):
    request = api.inference_pb2.GenerateRequest(
        text="The", sampling={"top_p": 2, "top_k": -1}, stopping={"max_new_tokens": 0})
    error = refusal(inference.Generate, request)
    assert {"sampling.top_p", "sampling.top_k", "stopping.max_new_tokens"} <= set(
        violations(error))


def test_a_prompt_that_can_never_fit_is_refused_with_numbers(api, inference):
    pb = api.inference_pb2
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * 40_000))
    error = refusal(inference.Generate, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "40000" in error.details() and "32768" in error.details()


def test_unknown_fields_are_refused_not_ignored(api, server):
    # Field 200, as a newer client might send it.
    serialized = api.inference_pb2.GenerateRequest(text="The").SerializeToString() + b"\xc0\x0c\x02"
    with server.channel() as channel:
        call = channel.unary_unary("/tidal.inference.v1.InferenceService/Generate")
        error = refusal(call, serialized)
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED and "200" in error.details()


def test_a_live_request_id_is_refused(api, inference):
    pb = api.inference_pb2
    request = pb.GenerateStreamRequest(request_id="twice", text="The", stopping={
        "max_new_tokens": 20_000, "ignore_eos": True})
    first = inference.GenerateStream(request)
    next(first)
    error = refusal(inference.GenerateStream, request)
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS and "twice" in error.details()
    first.cancel()


def test_a_passed_deadline_ends_the_request(api, inference):
    request = api.inference_pb2.GenerateRequest(
        text="The", stopping={"max_new_tokens": 20_000, "ignore_eos": True})
    error = refusal(inference.Generate, request, timeout=0.3)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_full_queue_says_when_to_come_back(api, start_server):
    server = start_server("--kv_cache_memory=68MiB", "--max_running_requests=1",
                          "--max_queued_requests=1")
    pb = api.inference_pb2
    long_request = pb.GenerateStreamRequest(
        text="The", stopping={"max_new_tokens": 8000, "ignore_eos": True})
    with server.channel() as channel:
        inference = server.inference(channel)
        running = inference.GenerateStream(long_request)
        next(running)
        queued = inference.GenerateStream(long_request)
        while server.metrics()["tidal_requests_waiting"] < 1:
            pass
        error = refusal(inference.GenerateStream, long_request)
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in rpc_status.from_call(error).details)
        assert retry.retry_delay.ToMilliseconds() > 0
        queued.cancel()
        running.cancel()


def test_no_error_carries_the_prompt(api, inference, server):
    secret = "xyzzy-secret-prompt"
    refusal(inference.Generate, api.inference_pb2.GenerateRequest(
        text=secret, sampling={"top_p": 2}))
    inference.Generate(api.inference_pb2.GenerateRequest(
        text=secret, stopping={"max_new_tokens": 2}))
    assert secret not in server.log()
