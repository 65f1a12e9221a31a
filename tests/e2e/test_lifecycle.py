"""Start, health, metrics, drain and exit status of the real server."""

import signal
import subprocess
import threading
import time

import grpc
import pytest

LONG = {"max_new_tokens": 4000, "ignore_eos": True}


def start_stream(api, server, channel, stopping):
    stream = server.inference(channel).GenerateStream(
        api.inference_pb2.GenerateStreamRequest(text="The golden river", stopping=stopping))
    next(stream)
    return stream


@pytest.mark.parametrize("service", [
    "", "liveness", "readiness", "tidal.inference.v1.InferenceService",
    "tidal.inference.v1.ModelService"])
def test_every_service_is_healthy(server, service):
    assert server.health(service) == "SERVING"


def test_health_does_not_know_other_services(server):
    assert server.health("nobody") == "NOT_FOUND"


def test_metrics_count_requests(api, server, inference):
    before = server.metrics()
    inference.Generate(api.inference_pb2.GenerateRequest(
        text="The golden river", stopping={"max_new_tokens": 5, "ignore_eos": True}))
    after = server.metrics()

    def grown(name):
        return after[name] - before[name]

    assert grown("tidal_generation_tokens_total") == 5
    assert grown('tidal_requests_finished_total{reason="length"}') == 1
    assert grown("tidal_time_to_first_token_seconds_count") == 1
    assert grown("tidal_inter_token_latency_seconds_count") == 4
    assert grown("tidal_e2e_request_latency_seconds_count") == 1


def test_every_label_value_is_there_from_the_start(start_server):
    metrics = start_server("--kv_cache_memory=68MiB").metrics()
    for name in ('tidal_kv_blocks{state="free"}', 'tidal_memory_bytes{kind="weights"}',
                 'tidal_requests_finished_total{reason="stop_string"}',
                 'tidal_cancellations_total{stage="prefill"}',
                 'tidal_attention_tokens_total{kind="attended"}',
                 'tidal_admission_rejections_total{reason="queued_requests"}'):
        assert name in metrics, sorted(key for key in metrics if "_bucket" not in key)


def test_sigterm_lets_running_streams_finish(api, start_server):
    server = start_server("--kv_cache_memory=68MiB")
    with server.channel() as channel:
        stream = start_stream(api, server, channel, {"max_new_tokens": 1500, "ignore_eos": True})
        server.process.send_signal(signal.SIGTERM)
        while server.health("readiness") == "SERVING":
            time.sleep(0.01)
        with pytest.raises(grpc.RpcError) as refused:
            server.inference(channel).Generate(api.inference_pb2.GenerateRequest(text="The"))
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        tokens = sum(len(event.delta.token_ids) for event in stream)
    assert tokens == 1500
    assert server.process.wait(30) == 0


def test_the_shutdown_timeout_aborts_what_is_left(api, start_server):
    server = start_server("--kv_cache_memory=68MiB", "--shutdown_timeout=500ms")
    with server.channel() as channel:
        stream = start_stream(api, server, channel, {"max_new_tokens": 8000, "ignore_eos": True})
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as aborted:
            list(stream)
    assert aborted.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(30) == 0


def test_a_second_sigterm_is_immediate(api, start_server):
    server = start_server("--kv_cache_memory=68MiB", "--shutdown_timeout=600s")
    with server.channel() as channel:
        stream = start_stream(api, server, channel, {"max_new_tokens": 8000, "ignore_eos": True})
        server.process.send_signal(signal.SIGTERM)
        while server.health("readiness") == "SERVING":
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        threading.Thread(target=lambda: [None for _ in _quietly(stream)], daemon=True).start()
        server.process.wait(10)


def _quietly(stream):
    try:
        yield from stream
    except grpc.RpcError:
        return


def test_a_missing_checkpoint_is_said_plainly(start_server, tmp_path):
    server = start_server(model=tmp_path / "nothing", wait=False)
    assert server.process.wait(30) == 1
    assert "nothing" in server.log() and "config.json" in server.log()


def test_a_cache_that_does_not_fit_is_said_with_numbers(start_server):
    server = start_server("--kv_cache_memory=1MiB", "--max_model_len=32768", wait=False)
    assert server.process.wait(30) == 1
    assert "285212672" in server.log() and "longest context" in server.log()


@pytest.mark.parametrize("flag", [
    "--attention=best", "--selection_scope=head", "--correction_interval=-1", "--device=cuda",
    "--token_budget=0", "--max_running_requests=0", "--selection_layers=2,99",
    "--kv_cache_memory=lots", "--no_such_flag=1"])
def test_a_bad_flag_is_refused_by_name(start_server, flag):
    server = start_server(flag, wait=False)
    try:
        status = server.process.wait(30)
    except subprocess.TimeoutExpired:
        status = 0
    assert status != 0
    assert flag.split("=")[0].lstrip("-") in server.log()
