"""Every way in which a request can be ended, at every stage of its life: who asked for it hears the
right code, its blocks come back, and another client's stream yields the tokens that it yields alone."""

import signal
import time

import grpc
import pytest
from test_vanished_clients import Proxy, channel_through, is_idle, request_for, wait_for

STAGES = ["queued", "prefill", "decode", "last token", "draining"]
WAYS = ["client cancel", "deadline", "AbortRequest", "dropped connection", "SIGTERM"]

FLAGS = ["--kv_cache_memory=256MiB", "--max_running_requests=2", "--max_batch_tokens=64",
         "--prefix_caching=false", "--admin_address=:0"]
NUM_BYSTANDER_TOKENS = 300
NUM_LAST_TOKENS = 20  # tokens of the request that is ended at its last one
DEADLINE_S = 1.5

# What the client hears. A request that is ended at its last token may also have finished.
CODES = {"client cancel": grpc.StatusCode.CANCELLED,
         "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
         "AbortRequest": grpc.StatusCode.CANCELLED,
         "dropped connection": None,
         "SIGTERM": grpc.StatusCode.UNAVAILABLE}


def time_to_last_token(inference, request):
    """Seconds, as measured now."""
    start = time.monotonic()
    for _ in inference.GenerateStream(request):
        pass
    return time.monotonic() - start


class Bystander:
    """Another client's stream, which shall notice nothing."""

    def __init__(self, api, inference):
        self._stream = inference.GenerateStream(
            request_for(api, num_tokens=NUM_BYSTANDER_TOKENS, sampling={"temperature": 0}))
        self.token_ids = []
        self._take(next(event for event in self._stream if event.HasField("delta")))

    def _take(self, event):
        self.token_ids.extend(event.delta.token_ids)

    def finish(self):
        for event in self._stream:
            self._take(event)
        return self.token_ids


class Victim:
    """A stream that is brought to a stage, and then ended."""

    def __init__(self, api, server, stage, way):
        self._server = server
        self._way = way
        self._api = api
        self._blocker = None
        self._own_channel = server.channel()
        self._proxy = Proxy(server.ports["listen"])
        self._channel = channel_through(self._proxy)
        if stage == "queued":
            self._blocker = server.inference(self._own_channel).GenerateStream(request_for(api))
            next(event for event in self._blocker if event.HasField("started"))
        sizes = {"prefill": {"num_prompt_tokens": 30_000, "num_tokens": 10},
                 "last token": {"num_tokens": NUM_LAST_TOKENS}}.get(stage, {})
        request = request_for(api, request_id="victim", **sizes)
        inference = server.inference(self._channel)
        timeout_s = None
        if way == "deadline":
            timeout_s = time_to_last_token(inference, request) if stage == "last token" \
                else DEADLINE_S
        self._stream = inference.GenerateStream(request, timeout=timeout_s)
        if way != "deadline" or stage != "last token":  # else time alone brings it there
            self._reach(stage)

    def _reach(self, stage):
        if stage == "queued":
            wait_for(self._server, lambda metrics: metrics["tidal_requests_waiting"] == 1)
            return
        wanted = NUM_LAST_TOKENS - 1 if stage == "last token" else 1
        num_tokens = 0
        for event in self._stream:
            num_tokens += len(event.delta.token_ids)
            if num_tokens >= wanted or (stage == "prefill" and event.HasField("progress")):
                return

    def end(self):
        """The code that its client hears; None where it has finished."""
        if self._way == "client cancel":
            self._stream.cancel()
        elif self._way == "AbortRequest":
            self._abort()
        elif self._way == "dropped connection":
            self._proxy.drop(reset=True)
            return CODES[self._way]  # nothing can be heard through it any more
        elif self._way == "SIGTERM":
            self._server.process.send_signal(signal.SIGTERM)
        try:
            for _ in self._stream:
                pass
            return None
        except grpc.RpcError as error:
            return error.code()

    def _abort(self):
        pb = self._api.admin_pb2
        with grpc.insecure_channel(f"127.0.0.1:{self._server.ports['admin']}") as channel:
            admin = self._api.admin_pb2_grpc.AdminServiceStub(channel)
            try:
                admin.AbortRequest(pb.AbortRequestRequest(request_id="victim"))
            except grpc.RpcError as error:  # it had just finished
                assert error.code() == grpc.StatusCode.NOT_FOUND

    def close(self):
        if self._blocker is not None:
            self._blocker.cancel()
        self._channel.close()
        self._own_channel.close()
        self._proxy.close()


@pytest.fixture(scope="module")
def shared_server(api, tmp_path_factory):
    from conftest import Server

    server = Server(api, tmp_path_factory.mktemp("matrix"), *FLAGS)
    yield server
    assert server.stop() == 0, server.log()


@pytest.fixture(scope="module")
def tokens_alone(api, shared_server):
    with shared_server.channel() as channel:
        return Bystander(api, shared_server.inference(channel)).finish()


def expect_freed(server):
    metrics = wait_for(server, is_idle)
    assert metrics['tidal_kv_blocks{state="used"}'] == 0
    assert metrics["tidal_waiting_prompt_tokens"] == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", STAGES)
def test_an_ended_request_frees_what_it_holds(api, shared_server, start_server, tokens_alone,
                                              stage, way):
    # A server that has measured its speed refuses a long prompt with a short deadline at once, and
    # one that is to end has a life of its own.
    if stage == "draining" or way == "SIGTERM":
        timeout = "60s" if stage == "draining" else "1s"
        server = start_server(*FLAGS, f"--shutdown_timeout={timeout}")
    elif way == "deadline":
        server = start_server(*FLAGS)
    else:
        server = shared_server
    with server.channel() as channel:
        bystander = Bystander(api, server.inference(channel))
        victim = Victim(api, server, stage, way)
        if stage == "draining":
            server.process.send_signal(signal.SIGTERM)
            wait_for(server, lambda metrics: metrics['tidal_server_state{state="draining"}'] == 1)
        code = victim.end()
        assert code == CODES[way] or (stage == "last token" and code is None)
        if way != "SIGTERM":
            assert bystander.finish() == tokens_alone
            victim.close()
            if stage != "draining":
                return expect_freed(server)
            assert server.process.wait(20) == 0, server.log()
            return
        try:
            assert bystander.finish() == tokens_alone
        except grpc.RpcError as error:  # the server's time to end was over
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert bystander.token_ids == tokens_alone[:len(bystander.token_ids)]
        victim.close()
        assert server.process.wait(20) == (2 if stage == "draining" else 0), server.log()
