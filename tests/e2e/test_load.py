"""Many streams at once, with cancels, deadlines and bad requests among them: right answers for those
who wait for them, and nothing left behind."""

import concurrent.futures
import random
import threading
import time

import grpc

NUM_STREAMS = 32
REQUESTS_A_STREAM = 4
# RSS may move by the allocator's caches, not by requests: 128 of them make a round.
MAX_GROWTH_BYTES = 8 << 20


class Tally:
    """What became of the requests."""

    def __init__(self):
        self._lock = threading.Lock()
        self.counts = {}

    def add(self, outcome):
        with self._lock:
            self.counts[outcome] = self.counts.get(outcome, 0) + 1


def run_one(api, inference, needles, rng, tally):
    pb = api.inference_pb2
    prompt, answer = rng.choice(needles)
    request = pb.GenerateStreamRequest(text=prompt, sampling={"temperature": 0})
    request.attention.mode = rng.choice([1, 2])
    request.attention.token_budget = rng.choice([64, 128, 256])
    kind = rng.choice(["answer", "answer", "long", "cancel", "deadline", "bad"])
    if kind == "bad":
        request.sampling.top_p = -1
    if kind in ("cancel", "deadline"):
        request.stopping.ignore_eos = True
        request.stopping.max_new_tokens = 1500
    if kind == "long":
        request.stopping.ignore_eos = True
        request.stopping.max_new_tokens = 200
    timeout = rng.uniform(0.05, 0.8) if kind == "deadline" else 300
    stream = inference.GenerateStream(request, timeout=timeout)
    cancel_after = rng.randrange(1, 30)
    try:
        text = ""
        for count, event in enumerate(stream):
            text += event.delta.text
            if kind == "cancel" and count >= cancel_after:
                stream.cancel()
        assert kind != "bad", "a bad request was served"
        if kind in ("cancel", "deadline"):  # it came too late
            tally.add(kind)
            return
        text = text[:len(answer)] if kind == "long" else text
        assert text == answer, f"{text!r} is not {answer!r}"
        tally.add("answered")
    except grpc.RpcError as error:
        expected = {"cancel": grpc.StatusCode.CANCELLED,
                    "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
                    "bad": grpc.StatusCode.INVALID_ARGUMENT}
        assert error.code() == expected.get(kind), (kind, error)
        tally.add(kind)


def run_round(api, server, needles, seed):
    tally = Tally()

    def client(index):
        rng = random.Random(seed * 1000 + index)
        with server.channel() as channel:
            inference = server.inference(channel)
            time.sleep(rng.uniform(0, 0.5))
            for _ in range(REQUESTS_A_STREAM):
                run_one(api, inference, needles, rng, tally)

    with concurrent.futures.ThreadPoolExecutor(NUM_STREAMS) as pool:
        for future in [pool.submit(client, index) for index in range(NUM_STREAMS)]:
            future.result()
    return tally.counts


def wait_until_idle(server):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        metrics = server.metrics()
        if not metrics["tidal_requests_running"] and not metrics["tidal_requests_waiting"]:
            return metrics
        time.sleep(0.05)
    raise AssertionError("requests are left although every client has gone")


def test_concurrent_streams_are_right_and_leave_nothing(api, start_server, needle):
    # A cache of 4096 tokens is too small for 32 streams, so that preemption has its part in this.
    server = start_server("--kv_cache_memory=34MiB", "--selection_layers=2,5",
                          "--max_running_requests=24")
    needles = [needle(length, depth, seed) for seed, (length, depth) in enumerate(
        [(80, 0.5), (150, 0.1), (300, 0.9), (600, 0.5), (1200, 0.3), (2500, 0.7)])]
    resident_bytes = []
    preemptions = 0
    for seed in range(4):
        counts = run_round(api, server, needles, seed)
        assert sum(counts.values()) == NUM_STREAMS * REQUESTS_A_STREAM
        assert set(counts) == {"answered", "cancel", "deadline", "bad"}, counts
        metrics = wait_until_idle(server)
        assert metrics['tidal_kv_blocks{state="used"}'] == 0
        assert metrics["tidal_waiting_prompt_tokens"] == 0
        preemptions = metrics["tidal_preemptions_total"]
        resident_bytes.append(server.resident_bytes())
    assert preemptions > 0
    assert not [key for key, value in metrics.items()
                if key.startswith("tidal_requests_total") and 'code="INTERNAL"' in key and value]
    # The first rounds touch the cache's memory and fill the allocator's pools.
    assert resident_bytes[3] - resident_bytes[1] < MAX_GROWTH_BYTES, resident_bytes
    assert server.stop() == 0
