"""Clients that vanish, or read nothing: their requests end and free what they hold, in whatever
stage they are, and others go on."""

import socket
import struct
import threading
import time

import grpc
import pytest


class Proxy:
    """Between one client and the server, byte by byte, until it is told to misbehave."""

    def __init__(self, port):
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port = self._listener.getsockname()[1]
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._server.connect(("127.0.0.1", port))
        self._client = None
        self._forwards_answers = threading.Event()
        self._forwards_answers.set()
        self._is_closed = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        try:
            self._client, _ = self._listener.accept()
        except OSError:
            return
        threading.Thread(target=self._pump, args=(self._client, self._server, None),
                         daemon=True).start()
        self._pump(self._server, self._client, self._forwards_answers)

    def _pump(self, source, sink, gate):
        try:
            while not self._is_closed:
                if gate:
                    gate.wait()
                piece = source.recv(4096)
                if not piece:
                    return
                if gate:
                    gate.wait()
                sink.sendall(piece)
        except OSError:
            return

    def stop_answers(self):
        """The client seems to read nothing any more; what it sends still gets through."""
        self._forwards_answers.clear()

    def drop(self, reset):
        """The connection to the server is gone: with a reset, or closed in order."""
        self._is_closed = True
        if reset:
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.close()

    def close(self):
        self._is_closed = True
        self._forwards_answers.set()
        for end in (self._listener, self._server, self._client):
            if end is not None:
                end.close()


def channel_through(proxy):
    return grpc.insecure_channel(f"127.0.0.1:{proxy.port}", options=[
        ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0),
        ("grpc.http2.bdp_probe", 0)])  # a window of 64 KiB, and no more


def wait_for(server, condition, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        metrics = server.metrics()
        if condition(metrics):
            return metrics
        assert time.monotonic() < deadline, {
            name: value for name, value in metrics.items()
            if "cancel" in name or "_requests_" in name}
        time.sleep(0.02)


def is_idle(metrics):
    return metrics["tidal_requests_running"] == 0 and metrics["tidal_requests_waiting"] == 0


def request_for(api, num_prompt_tokens=3, num_tokens=30_000, **fields):
    ids = api.inference_pb2.TokenIds(ids=[5 + index % 200 for index in range(num_prompt_tokens)])
    return api.inference_pb2.GenerateStreamRequest(
        token_ids=ids, stopping={"max_new_tokens": num_tokens, "ignore_eos": True}, **fields)


def reach(stage, api, server, inference, own):
    """Starts a stream of `inference` and leaves it in `stage`; `own` is another client's, which may
    have to be in the way."""
    if stage == "queued":
        blocker = own.GenerateStream(request_for(api))
        next(blocker)
        stream = inference.GenerateStream(request_for(api))
        wait_for(server, lambda metrics: metrics["tidal_requests_waiting"] == 1)
        return stream, blocker
    if stage == "prefill":
        stream = inference.GenerateStream(request_for(api, num_prompt_tokens=30_000, num_tokens=10))
        next(event for event in stream if event.HasField("progress"))
        return stream, None
    stream = inference.GenerateStream(request_for(api))
    next(event for event in stream if event.HasField("delta"))
    return stream, None


@pytest.fixture(scope="module")
def single_server(api, tmp_path_factory):
    """Computes one request at a time, and looks after silent clients each second."""
    from conftest import Server

    server = Server(api, tmp_path_factory.mktemp("single"), "--kv_cache_memory=272MiB",
                    "--max_running_requests=1", "--max_batch_tokens=64", "--keepalive_time=1s",
                    "--keepalive_timeout=1s", "--prefix_caching=false")
    yield server
    assert server.stop() == 0, server.log()


@pytest.mark.parametrize("how", ["cancel", "close", "reset", "silence"])
@pytest.mark.parametrize("stage", ["queued", "prefill", "decode"])
def test_a_vanished_clients_request_ends(api, single_server, stage, how):
    server = single_server
    counter = f'tidal_cancellations_total{{stage="{stage}"}}'
    before = wait_for(server, is_idle)[counter]
    proxy = Proxy(server.ports["listen"])
    with channel_through(proxy) as channel, server.channel() as own_channel:
        stream, blocker = reach(stage, api, server, server.inference(channel),
                                server.inference(own_channel))
        if how == "cancel":
            stream.cancel()
        elif how == "silence":
            proxy.stop_answers()
        else:
            proxy.drop(reset=how == "reset")
        wait_for(server, lambda metrics: metrics[counter] == before + 1)
        if blocker is not None:
            next(blocker)  # has noticed nothing
            blocker.cancel()
        metrics = wait_for(server, is_idle)
        proxy.close()
    assert metrics['tidal_kv_blocks{state="used"}'] == 0


def test_who_reads_nothing_is_given_up(api, start_server):
    server = start_server("--kv_cache_memory=26MiB", "--stalled_stream_timeout=1s",
                          "--max_pending_response_size=64KiB")
    proxy = Proxy(server.ports["listen"])
    with channel_through(proxy) as channel, server.channel() as own_channel:
        stream = server.inference(channel).GenerateStream(
            request_for(api, num_tokens=2000, output={"num_top_logprobs": 20}))
        next(stream)
        proxy.stop_answers()
        # Others are served meanwhile.
        other = server.inference(own_channel).GenerateStream(request_for(api, num_tokens=300))
        assert sum(len(event.delta.token_ids) for event in other) == 300
        wait_for(server, is_idle)
        # The call is gone too, so that nothing keeps the server from its end.
        wait_for(server, lambda metrics: metrics[
            'tidal_requests_total{code="RESOURCE_EXHAUSTED",'
            'method="tidal.inference.v1.InferenceService/GenerateStream"}'] == 1)
        assert server.stop(timeout_s=10) == 0
        proxy.close()
