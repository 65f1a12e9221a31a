"""SIGUSR1 makes the server say in its log what it holds."""

import json
import signal
import time

SECRET = "The golden river"


def lines_of(server, message):
    records = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    return [record for record in records if record["message"] == message]


def wait_for_lines(server, message, count):
    deadline = time.monotonic() + 20
    while len(lines_of(server, message)) < count:
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.02)
    return lines_of(server, message)


def test_sigusr1_tells_every_sequence_and_no_prompt(api, start_server):
    server = start_server("--kv_cache_memory=68MiB", "--max_running_requests=1")
    stopping = {"max_new_tokens": 5000, "ignore_eos": True}
    with server.channel() as channel:
        inference = server.inference(channel)
        running = inference.GenerateStream(api.inference_pb2.GenerateStreamRequest(
            text=SECRET, request_id="running", stopping=stopping), timeout=300)
        next(event for event in running if event.HasField("delta"))
        waiting = inference.GenerateStream(api.inference_pb2.GenerateStreamRequest(
            text=SECRET, request_id="waiting", stopping=stopping))
        while server.metrics()["tidal_requests_waiting"] != 1:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGUSR1)
        first, second = wait_for_lines(server, "debug state of a sequence", 2)
        running.cancel()
        waiting.cancel()
    (engine,) = lines_of(server, "debug state of the engine")
    (process,) = lines_of(server, "debug state of the server")
    assert process["phase"] == "serving" and process["active_calls"] == 2
    assert 0 <= process["since_progress_ms"] < 60_000
    assert engine["running_requests"] == 1 and engine["waiting_requests"] == 1
    assert engine["used_blocks"] == first["blocks"] > 0
    assert (first["request_id"], first["stage"]) == ("running", "decode")
    # gRPC rounds a deadline up on its way.
    assert first["generated_tokens"] > 0 and 0 < first["time_left_ms"] < 320_000
    assert (second["request_id"], second["stage"]) == ("waiting", "queued")
    assert second["blocks"] == 0 and "time_left_ms" not in second
    assert SECRET not in server.log()
    assert server.stop() == 0


def test_sigusr1_is_answered_by_an_idle_server(start_server):
    server = start_server("--kv_cache_memory=68MiB")
    server.process.send_signal(signal.SIGUSR1)
    (engine,) = wait_for_lines(server, "debug state of the engine", 1)
    assert engine["sequences"] == 0 and engine["used_blocks"] == 0
    assert server.stop() == 0
