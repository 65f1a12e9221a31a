"""TLS, mutual TLS and tokens of the real server, seen by Python's grpcio; and what hostile or
broken connections do to everybody else."""

import concurrent.futures
import socket
import ssl
import subprocess
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

ALICE = "alice-token-0123456789"
BOB = "bob-token-9876543210"


class Authority:
    """Issues certificates with the openssl program."""

    def __init__(self, directory, name):
        self.directory = directory
        self.key, self.certificate = self._file(f"{name}.key"), self._file(f"{name}.pem")
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                      "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", self.key,
                      "-out", self.certificate)

    def _file(self, name):
        return str(self.directory / name)

    @staticmethod
    def _openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def issue(self, name, extension="subjectAltName=DNS:localhost,IP:127.0.0.1"):
        """(key, certificate) files of a new certificate."""
        key, request, certificate, extensions = (
            self._file(f"{name}.{suffix}") for suffix in ("key", "csr", "pem", "ext"))
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                      "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        with open(extensions, "w", encoding="utf-8") as file:
            file.write(extension)
        self._openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key,
                      "-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", certificate)
        return key, certificate


def read(path):
    with open(path, "rb") as file:
        return file.read()


def replace(path, contents):
    with open(path, "wb") as file:
        file.write(contents)


def secure_channel(server, authority, client=None):
    key, certificate = client or (None, None)
    credentials = grpc.ssl_channel_credentials(
        read(authority.certificate), key and read(key), certificate and read(certificate))
    return grpc.secure_channel(f"localhost:{server.ports['listen']}", credentials,
                               options=[("grpc.use_local_subchannel_pool", 1)])


def generate(api, server, channel, token=None):
    """The call's status code."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        server.inference(channel).Generate(api.inference_pb2.GenerateRequest(
            text="The golden river", stopping={"max_new_tokens": 2, "ignore_eos": True}),
            metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


def start_tls_server(start_server, authority, *flags):
    """A server with a certificate of `authority`; its health is asked on a port without TLS."""
    key, certificate = authority.issue("server")
    server = start_server("--kv_cache_memory=68MiB", f"--tls_certificate_file={certificate}",
                          f"--tls_key_file={key}", "--health_address=127.0.0.1:0",
                          "--credential_reload_interval=1s", *flags, health_port="health")
    return server


def test_tls_encrypts_and_refuses_plain_text(api, start_server, authority, tmp_path):
    server = start_tls_server(start_server, authority)
    with secure_channel(server, authority) as channel:
        assert generate(api, server, channel) == grpc.StatusCode.OK
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    with grpc.insecure_channel(server.target) as channel:
        assert generate(api, server, channel) == grpc.StatusCode.UNAVAILABLE
    (tmp_path / "other").mkdir()
    with secure_channel(server, Authority(tmp_path / "other", "stranger")) as channel:
        assert generate(api, server, channel) == grpc.StatusCode.UNAVAILABLE
    for version, is_served in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        attempt = subprocess.run(
            ["openssl", "s_client", version, "-cipher", "DEFAULT@SECLEVEL=0", "-alpn", "h2",
             "-connect", f"127.0.0.1:{server.ports['listen']}"],
            input=b"", capture_output=True, check=False, timeout=30)
        assert (attempt.returncode == 0) == is_served, attempt
        assert b"no protocols available" not in attempt.stderr  # openssl itself would
    assert server.stop() == 0


def served_certificate(server):
    return ssl.get_server_certificate(("127.0.0.1", server.ports["listen"]))


def wait_for_log(server, text):
    deadline = time.monotonic() + 30
    while text not in server.log():
        assert time.monotonic() < deadline, server.log()
        try:
            served_certificate(server)  # files are looked at when somebody connects
        except OSError:
            pass
        time.sleep(0.1)


def test_certificates_are_reloaded_while_calls_go_on(api, start_server, authority):
    server = start_tls_server(start_server, authority)
    certificate, key = authority.directory / "server.pem", authority.directory / "server.key"
    first = served_certificate(server)
    new_key, new_certificate = authority.issue("renewed")
    with secure_channel(server, authority) as channel:
        stream = server.inference(channel).GenerateStream(api.inference_pb2.GenerateStreamRequest(
            text="The", stopping={"max_new_tokens": 1500, "ignore_eos": True}))
        next(stream)
        # Half of a new pair leaves the old one in force.
        replace(certificate, read(new_certificate))
        wait_for_log(server, "certificates cannot be reloaded")
        assert served_certificate(server) == first
        replace(key, read(new_key))
        wait_for_log(server, "certificates reloaded")
        assert served_certificate(server) == read(new_certificate).decode()
        assert sum(len(event.delta.token_ids) for event in stream) == 1500
    with secure_channel(server, authority) as channel:
        assert generate(api, server, channel) == grpc.StatusCode.OK
    assert server.stop() == 0


def test_mutual_tls_asks_for_a_certificate_and_names_its_holder(api, start_server, authority,
                                                                 tmp_path):
    server = start_tls_server(start_server, authority,
                              f"--tls_client_ca_file={authority.certificate}")
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "stranger")
    with secure_channel(server, authority, authority.issue(
            "carol", "subjectAltName=URI:spiffe://example/carol")) as channel:
        assert generate(api, server, channel) == grpc.StatusCode.OK
    with secure_channel(server, authority) as channel:
        assert generate(api, server, channel) == grpc.StatusCode.UNAVAILABLE
    with secure_channel(server, authority, stranger.issue("mallory")) as channel:
        assert generate(api, server, channel) == grpc.StatusCode.UNAVAILABLE
    assert server.health() == "SERVING"
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['health']}") as channel:
        assert generate(api, server, channel) == grpc.StatusCode.UNIMPLEMENTED
    assert '"client":"spiffe://example/carol"' in server.log()
    assert server.stop() == 0


def test_tokens_are_asked_for_and_reloaded(api, start_server, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# clients\nalice:{ALICE}\n")
    server = start_server("--kv_cache_memory=68MiB", f"--auth_token_file={tokens}",
                          "--credential_reload_interval=1s")
    assert server.health() == "SERVING"  # probes have no token
    with server.channel() as channel:
        assert generate(api, server, channel) == grpc.StatusCode.UNAUTHENTICATED
        assert generate(api, server, channel, BOB) == grpc.StatusCode.UNAUTHENTICATED
        assert generate(api, server, channel, ALICE) == grpc.StatusCode.OK
        tokens.write_text(f"bob:{BOB}\n")
        deadline = time.monotonic() + 30
        while generate(api, server, channel, BOB) != grpc.StatusCode.OK:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert generate(api, server, channel, ALICE) == grpc.StatusCode.UNAUTHENTICATED
    assert server.metrics()['tidal_admission_rejections_total{reason="unauthenticated"}'] >= 3
    assert server.stop() == 0
    log = server.log()
    assert '"client":"alice"' in log and '"client":"bob"' in log
    assert ALICE not in log and BOB not in log


def test_secrets_are_in_no_log_argument_or_metric(api, start_server, authority, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice:{ALICE}\n")
    server = start_tls_server(start_server, authority, f"--auth_token_file={tokens}",
                              "--log_level=debug")
    with secure_channel(server, authority) as channel:
        assert generate(api, server, channel, ALICE) == grpc.StatusCode.OK
        assert generate(api, server, channel, BOB) == grpc.StatusCode.UNAUTHENTICATED
    tokens.write_text(f"alice:{ALICE}\nbob {BOB}\n")  # wrong, so that the log speaks of it
    time.sleep(1.1)
    with secure_channel(server, authority) as channel:
        assert generate(api, server, channel, ALICE) == grpc.StatusCode.OK
    assert "tokens cannot be reloaded" in server.log() and "line 2" in server.log()
    key_line = read(authority.directory / "server.key").decode().splitlines()[1]
    with open(f"/proc/{server.process.pid}/cmdline", encoding="utf-8") as file:
        arguments = file.read()
    metrics = server.metrics_text()
    assert server.stop() == 0
    for secret in (ALICE, BOB, key_line):
        for name, text in (("log", server.log()), ("arguments", arguments), ("metrics", metrics)):
            assert secret not in text, name


@pytest.mark.parametrize("broken", ["missing", "no PEM", "other key"])
def test_wrong_certificates_are_said_at_the_start(start_server, authority, tmp_path, broken):
    key, certificate = authority.issue("server")
    if broken == "missing":
        key = str(tmp_path / "nothing.key")
    elif broken == "no PEM":
        replace(key, b"certainly not PEM")
    else:
        key, _ = authority.issue("other")
    server = start_server(f"--tls_certificate_file={certificate}", f"--tls_key_file={key}",
                          wait=False)
    assert server.process.wait(30) == 1
    assert "--tls_key_file" in server.log() and key in server.log()


def test_tokens_in_plain_text_are_refused_at_the_start(start_server, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice:{ALICE}\n")
    server = start_server(f"--auth_token_file={tokens}", "--listen_address=0.0.0.0:0", wait=False)
    assert server.process.wait(30) == 1
    assert "plain text" in server.log() and ALICE not in server.log()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
GARBAGE = {
    "nothing": b"",
    "http/1": b"GET / HTTP/1.1\r\nHost: tidal\r\n\r\n",
    "random bytes": bytes(range(256)) * 64,
    "half a preface": PREFACE[:10],
    "no settings": PREFACE,
    "oversized frame": PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 4096,
    "headers of garbage": PREFACE + SETTINGS + b"\x00\x00\x10\x01\x04\x00\x00\x00\x01" +
                          b"\xff" * 16,
    "data on stream 0": PREFACE + SETTINGS + b"\x00\x00\x04\x00\x00\x00\x00\x00\x00data",
    "continuation alone": PREFACE + SETTINGS + b"\x00\x00\x01\x09\x04\x00\x00\x00\x01\x82",
    "window of 0": PREFACE + SETTINGS + b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    "resets without end": PREFACE + SETTINGS +
                          b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08" * 1000,
    "tls hello cut short": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


def send(port, contents):
    """Sends it all and reads until the server closes, or for a while; how it ended."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            connection.sendall(contents)
            connection.settimeout(4)
            while connection.recv(65536):
                pass
            return "closed"
        except socket.timeout:
            return "open"
        except OSError:
            return "reset"


@pytest.mark.parametrize("tls", [False, True])
def test_malformed_connections_disturb_nobody(api, start_server, authority, tls):
    flags = ["--handshake_timeout=1s"]
    if tls:
        server = start_tls_server(start_server, authority, *flags)
        channel = secure_channel(server, authority)
    else:
        server = start_server("--kv_cache_memory=68MiB", *flags)
        channel = server.channel()
    port = server.ports["listen"]
    with channel:
        stream = server.inference(channel).GenerateStream(api.inference_pb2.GenerateStreamRequest(
            text="The", stopping={"max_new_tokens": 3000, "ignore_eos": True}))
        next(stream)
        with concurrent.futures.ThreadPoolExecutor(len(GARBAGE)) as pool:
            ends = dict(zip(GARBAGE, pool.map(lambda name: send(port, GARBAGE[name]), GARBAGE)))
        assert sum(len(event.delta.token_ids) for event in stream) == 3000
        assert generate(api, server, channel) == grpc.StatusCode.OK
    # Who says nothing, or not enough, is not waited for.
    for name in ("nothing", "half a preface", "no settings", "tls hello cut short"):
        assert ends[name] != "open", ends
    assert server.stop() == 0


def test_slow_connections_do_not_keep_others_out(api, start_server):
    server = start_server("--kv_cache_memory=68MiB", "--handshake_timeout=2s")
    slow = [socket.create_connection(("127.0.0.1", server.ports["listen"])) for _ in range(200)]
    try:
        for index, connection in enumerate(slow):
            connection.sendall(PREFACE[:1 + index % 20])
        with server.channel() as channel:
            assert generate(api, server, channel) == grpc.StatusCode.OK
        assert server.health() == "SERVING"
        deadline = time.monotonic() + 20
        for connection in slow:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                while connection.recv(4096):
                    pass
            except ConnectionError:
                pass
    finally:
        for connection in slow:
            connection.close()
    assert server.stop() == 0


def test_a_message_beyond_the_limit_is_refused(api, start_server):
    server = start_server("--kv_cache_memory=68MiB", "--max_receive_message_size=64KiB")
    with server.channel() as channel:
        with pytest.raises(grpc.RpcError) as refused:
            server.inference(channel).Generate(
                api.inference_pb2.GenerateRequest(text="x" * (65 << 10)))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert generate(api, server, channel) == grpc.StatusCode.OK
    assert server.stop() == 0


def test_clients_have_limits_of_their_own(api, start_server, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    server = start_server("--kv_cache_memory=68MiB", f"--auth_token_file={tokens}",
                          "--max_client_requests=1", "--max_client_tokens_per_minute=100000")
    long_request = api.inference_pb2.GenerateStreamRequest(
        text="The", stopping={"max_new_tokens": 8000, "ignore_eos": True})
    with server.channel() as channel:
        stream = server.inference(channel).GenerateStream(
            long_request, metadata=[("authorization", f"Bearer {ALICE}")])
        next(stream)
        assert generate(api, server, channel, ALICE) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert generate(api, server, channel, BOB) == grpc.StatusCode.OK
        stream.cancel()
    assert server.metrics()['tidal_admission_rejections_total{reason="client_requests"}'] == 1
    assert server.stop() == 0
