"""Starts the real server and talks to it with Python's grpcio, through stubs made from proto/.

TIDAL_BIN_DIR names the directory with the programs; CTest sets it.
"""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "needle"
START_TIMEOUT_S = 120


def _make_stubs(directory):
    import grpc_tools

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    names = ["admin", "attention", "inference", "model"]
    files = [str(ROOT / "proto" / "tidal" / "inference" / "v1" / f"{name}.proto") for name in names]
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--python_out={directory}",
                 f"--grpc_python_out={directory}", *files]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, str(directory))
    stubs = types.SimpleNamespace()
    for name in names:
        for suffix in ("_pb2", "_pb2_grpc"):
            module = importlib.import_module(f"tidal.inference.v1.{name}{suffix}")
            setattr(stubs, name + suffix, module)
    return stubs


@pytest.fixture(scope="session")
def api(tmp_path_factory):
    """Modules inference_pb2, inference_pb2_grpc, model_pb2, ... made from the API's protos."""
    return _make_stubs(tmp_path_factory.mktemp("stubs"))


class Server:
    """A tidal-server process on free ports of the loopback address."""

    def __init__(self, api, directory, *flags, model=MODEL, wait=True, health_port="listen"):
        self._api = api
        self._health_port = health_port  # the name of the port that is asked without encryption
        self._port_file = directory / "ports"
        self.log_path = directory / "log"
        program = pathlib.Path(os.environ["TIDAL_BIN_DIR"]) / "tidal-server"
        command = [str(program), f"--model_path={model}", "--listen_address=127.0.0.1:0",
                   "--metrics_address=127.0.0.1:0", f"--port_file={self._port_file}",
                   "--log_format=json", *flags]
        self._log = open(self.log_path, "wb")
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        if wait:
            self._wait_until_serving()

    def _wait_until_serving(self):
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server exited: {self.log()}")
            if self._port_file.exists() and self.health() == "SERVING":
                return
            time.sleep(0.05)
        raise AssertionError(f"the server was not ready in time: {self.log()}")

    @property
    def ports(self):
        """{"listen": gRPC's port, "metrics": Prometheus' port, ...}."""
        lines = self._port_file.read_text().splitlines()
        return {name: int(port) for name, port in (line.split() for line in lines)}

    @property
    def target(self):
        return f"127.0.0.1:{self.ports['listen']}"

    def channel(self):
        return grpc.insecure_channel(self.target)

    def inference(self, channel):
        return self._api.inference_pb2_grpc.InferenceServiceStub(channel)

    def health(self, service=""):
        with grpc.insecure_channel(f"127.0.0.1:{self.ports[self._health_port]}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            except grpc.RpcError as error:
                return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def metrics_text(self):
        url = f"http://127.0.0.1:{self.ports['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()

    def metrics(self):
        """{'name{labels}': value} of every sample."""
        samples = {}
        for line in self.metrics_text().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
        return samples

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def log(self):
        return self.log_path.read_text(errors="replace")

    def stop(self, timeout_s=60):
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self._log.close()
        return status


@pytest.fixture
def start_server(api, tmp_path):
    """start_server(*flags, ...) -> Server; all are stopped at the test's end."""
    servers = []

    def start(*flags, **options):
        directory = tmp_path / f"server{len(servers)}"
        directory.mkdir()
        servers.append(Server(api, directory, *flags, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(api, tmp_path_factory):
    """A server with default attention and a cache of 32K tokens, for a whole file of tests."""
    running = Server(api, tmp_path_factory.mktemp("server"), "--kv_cache_memory=272MiB",
                     "--selection_layers=2,5")
    yield running
    assert running.stop() == 0, running.log()


@pytest.fixture
def inference(server):
    with server.channel() as channel:
        yield server.inference(channel)


@pytest.fixture(scope="session")
def needle():
    """needle(num_tokens, depth, seed) -> (prompt, answer), from the embedded model's grammar."""

    def make(num_tokens, depth=0.5, seed=1):
        command = [sys.executable, str(MODEL / "grammar.py"), f"--tokens={num_tokens}",
                   f"--depth={depth}", f"--seed={seed}", "--json"]
        made = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return made["prompt"], made["answer"]

    return make


@pytest.fixture(scope="session")
def text_of():
    """The whole text of a stream of GenerateStreamResponse."""
    return lambda stream: "".join(event.delta.text for event in stream)
