"""Trace context in and out, and one line of the log for each call."""

import json
import time

import grpc
import pytest

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
SECRET = "plugh-secret-prompt"


class CallLog:
    """The lines of calls that end after its construction."""

    def __init__(self, server):
        self._server = server
        self._num_before = len(self._lines())

    def _lines(self):
        objects = [json.loads(line) for line in self._server.log().splitlines()
                   if line.endswith("}")]
        return [line for line in objects
                if line["message"] in ("request finished", "call finished")]

    def next(self):
        """The first of them, which is written a moment after the client has its answer."""
        deadline = time.monotonic() + 10
        while len(self._lines()) == self._num_before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self._lines()[self._num_before]


@pytest.fixture
def call_log(server):
    return CallLog(server)


def requests_for(api):
    pb = api.inference_pb2
    stopping = {"max_new_tokens": 3, "ignore_eos": True}
    return {"Generate": pb.GenerateRequest(text=SECRET, stopping=stopping),
            "GenerateStream": pb.GenerateStreamRequest(text=SECRET, stopping=stopping),
            "Tokenize": pb.TokenizeRequest(text=SECRET),
            "Detokenize": pb.DetokenizeRequest(token_ids=[5, 6])}


def call(inference, method, request, metadata):
    """The call after its end; its trailing metadata tell."""
    if method == "GenerateStream":
        stream = inference.GenerateStream(request, metadata=metadata)
        list(stream)
        return stream
    _, ended = getattr(inference, method).with_call(request, metadata=metadata)
    return ended


@pytest.mark.parametrize("method", ["Generate", "GenerateStream", "Tokenize", "Detokenize"])
def test_a_trace_context_is_logged_and_echoed(api, server, inference, call_log, method):
    ended = call(inference, method, requests_for(api)[method], [("traceparent", TRACEPARENT)])
    assert ("traceparent", TRACEPARENT) in [tuple(entry) for entry in ended.trailing_metadata()]
    line = call_log.next()
    assert line["trace_id"] == TRACE_ID and line["method"] == method
    assert SECRET not in server.log()


@pytest.mark.parametrize("metadata", [
    [], [("traceparent", "00-zz-01")], [("traceparent", TRACEPARENT.upper())]])
def test_what_is_no_trace_context_is_ignored(api, inference, call_log, metadata):
    ended = call(inference, "Generate", requests_for(api)["Generate"], metadata)
    assert "traceparent" not in [key for key, _ in ended.trailing_metadata()]
    assert "trace_id" not in call_log.next()


def test_an_error_is_traced_too(api, inference, call_log):
    with pytest.raises(grpc.RpcError) as error:
        inference.Generate(api.inference_pb2.GenerateRequest(text=SECRET, sampling={"top_p": 2}),
                           metadata=[("traceparent", TRACEPARENT)])
    assert ("traceparent", TRACEPARENT) in [tuple(e) for e in error.value.trailing_metadata()]
    line = call_log.next()
    assert line["trace_id"] == TRACE_ID and line["code"] == "INVALID_ARGUMENT"
    assert "sampling.top_p" in line["error"]


def test_the_log_has_what_a_request_cost(api, inference, call_log):
    answer = inference.Generate(requests_for(api)["Generate"])
    line = call_log.next()
    assert line["request_id"] == answer.request_id and line["code"] == "OK"
    assert line["client"] == "127.0.0.1" and line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["prompt_tokens"] == answer.usage.prompt_tokens
    assert line["generated_tokens"] == 3 and line["finish_reason"] == "length"
    for name in ("queue_ms", "prefill_ms", "decode_ms", "ttft_ms", "e2e_ms", "attended_share"):
        assert line[name] >= 0
