"""AdminService on its own address: a Unix socket, a port, and who may use it."""

import os
import stat

import grpc
import pytest

TOKEN = "operator-token-0123456789"


def admin(api, channel):
    return api.admin_pb2_grpc.AdminServiceStub(channel)


def long_stream(api, server, channel, request_id):
    stream = server.inference(channel).GenerateStream(api.inference_pb2.GenerateStreamRequest(
        request_id=request_id, text="The", stopping={"max_new_tokens": 8000, "ignore_eos": True}))
    next(stream)
    return stream


def test_an_operator_aborts_and_drains_through_a_unix_socket(api, start_server, tmp_path):
    path = tmp_path / "admin.socket"
    server = start_server("--kv_cache_memory=68MiB", f"--admin_address=unix:{path}",
                          "--shutdown_timeout=60s")
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0
    with server.channel() as channel, grpc.insecure_channel(f"unix:{path}") as operator:
        first = long_stream(api, server, channel, "first")
        second = long_stream(api, server, channel, "second")
        admin(api, operator).AbortRequest(
            api.admin_pb2.AbortRequestRequest(request_id="first"))
        with pytest.raises(grpc.RpcError) as aborted:
            list(first)
        assert aborted.value.code() == grpc.StatusCode.CANCELLED
        assert "operator" in aborted.value.details()
        answer = admin(api, operator).Drain(api.admin_pb2.DrainRequest())
        assert answer.active_calls in (1, 2)  # the aborted one may just be ending
        assert sum(len(event.delta.token_ids) for event in second) > 0
    assert server.process.wait(30) == 0
    assert "drain asked for" in server.log()


def test_an_operator_flushes_the_prefix_cache(api, start_server):
    server = start_server("--kv_cache_memory=68MiB", "--admin_address=:0")
    pb = api.inference_pb2
    request = pb.GenerateRequest(text="The golden river " * 40, sampling={"temperature": 0},
                                 stopping={"max_new_tokens": 2, "ignore_eos": True})
    with server.channel() as channel, \
            grpc.insecure_channel(f"127.0.0.1:{server.ports['admin']}") as operator:
        inference = server.inference(channel)
        assert inference.Generate(request).usage.cached_prompt_tokens == 0
        assert inference.Generate(request).usage.cached_prompt_tokens > 0
        flush = admin(api, operator).FlushPrefixCache
        assert flush(api.admin_pb2.FlushPrefixCacheRequest()).dropped_blocks > 0
        assert inference.Generate(request).usage.cached_prompt_tokens == 0
    assert server.stop() == 0


def test_admin_is_not_on_the_clients_port(api, server):
    with server.channel() as channel:
        with pytest.raises(grpc.RpcError) as error:
            admin(api, channel).Drain(api.admin_pb2.DrainRequest())
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_an_operators_token_is_not_a_clients(api, start_server, tmp_path):
    tokens, admin_tokens = tmp_path / "tokens", tmp_path / "admin_tokens"
    tokens.write_text("alice:alice-token-0123456789\n")
    admin_tokens.write_text(f"root:{TOKEN}\n")
    server = start_server("--kv_cache_memory=68MiB", "--admin_address=:0",
                          f"--auth_token_file={tokens}", f"--admin_token_file={admin_tokens}")
    request = api.admin_pb2.AbortRequestRequest(request_id="nobody")
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['admin']}") as operator:
        for token, code in ((None, grpc.StatusCode.UNAUTHENTICATED),
                            ("alice-token-0123456789", grpc.StatusCode.UNAUTHENTICATED),
                            (TOKEN, grpc.StatusCode.NOT_FOUND)):
            metadata = [("authorization", f"Bearer {token}")] if token else []
            with pytest.raises(grpc.RpcError) as error:
                admin(api, operator).AbortRequest(request, metadata=metadata)
            assert error.value.code() == code
    assert TOKEN not in server.log()
    assert server.stop() == 0


def test_an_open_admin_port_is_refused_at_the_start(start_server):
    server = start_server("--admin_address=0.0.0.0:0", wait=False)
    assert server.process.wait(30) == 1
    assert "--admin_address" in server.log() and "--admin_token_file" in server.log()
