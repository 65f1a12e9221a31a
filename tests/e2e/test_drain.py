"""The server's life as health (Check and Watch), metrics and calls show it."""

import signal
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def states(server):
    return {state for state in ("loading", "ready", "draining", "dead")
            if server.metrics()[f'tidal_server_state{{state="{state}"}}'] == 1}


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lame_duck_says_so_and_still_serves(api, start_server):
    server = start_server("--kv_cache_memory=68MiB", "--lame_duck_interval=2s")
    request = api.inference_pb2.GenerateRequest(
        text="The", stopping={"max_new_tokens": 2, "ignore_eos": True})
    with server.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="readiness"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert states(server) == {"ready"}
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert states(server) == {"draining"}
        assert server.health("liveness") == "SERVING"
        server.inference(channel).Generate(request)  # still taken
        # Holds the server while it drains.
        stream = server.inference(channel).GenerateStream(api.inference_pb2.GenerateStreamRequest(
            text="The", stopping={"max_new_tokens": 8000, "ignore_eos": True}))
        next(stream)

        def is_refused():
            try:
                server.inference(channel).Generate(request)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE
                return True
            return False

        wait_until(is_refused)
        stream.cancel()
        watch.cancel()
    assert server.process.wait(30) == 0
    log = server.log()
    for message in ("tidal-server starts", '"serving"', "signal received", '"draining"',
                    '"stopped"'):
        assert message in log


def generate_one_token(api, server, num_prompt_tokens):
    """(seconds of prefill, what liveness said meanwhile)."""
    ids = api.inference_pb2.TokenIds(ids=[5 + index % 200 for index in range(num_prompt_tokens)])
    request = api.inference_pb2.GenerateRequest(
        token_ids=ids, stopping={"max_new_tokens": 1, "ignore_eos": True})
    answers, seen = [], set()
    with server.channel() as channel:
        thread = threading.Thread(
            target=lambda: answers.append(server.inference(channel).Generate(request)))
        thread.start()
        while thread.is_alive():
            seen.add(server.health("liveness"))
            time.sleep(0.05)
    return answers[0].timings.prefill_seconds, seen


def test_a_long_prefill_is_alive(api, start_server):
    """Many steps, together longer than the timeout, and no token for all that time."""
    server = start_server("--kv_cache_memory=544MiB", "--max_batch_tokens=64",
                          "--max_running_requests=8", "--liveness_timeout=1s")
    for num_prompt_tokens in (6_000, 15_000, 30_000):  # as many as this machine needs
        seconds, seen = generate_one_token(api, server, num_prompt_tokens)
        assert seen == {"SERVING"}
        if seconds > 2:
            break
    assert seconds > 2
    assert server.metrics()['tidal_engine_errors_total{kind="stall"}'] == 0
    assert server.stop() == 0
