"""The real server, and what it says of itself."""

import os
import pathlib
import re
import subprocess
import time
import types
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODEL = ROOT / "models" / "needle"
START_TIMEOUT_S = 120


def _program(name):
    return pathlib.Path(os.environ["TIDAL_BIN_DIR"]) / name


@pytest.fixture(scope="session")
def server_flags():
    """The names of tidal-server's flags."""
    output = subprocess.run([_program("tidal-server"), "--help"], capture_output=True, text=True,
                            check=False)
    names = set(re.findall(r"^ +--(\w+) ", output.stdout, re.MULTILINE))
    assert {"model_path", "shutdown_timeout"} <= names
    return names


def _ports(path):
    words = path.read_text(encoding="utf-8").split()
    return {name: int(port) for name, port in zip(words[::2], words[1::2])}


@pytest.fixture
def start_server(tmp_path):
    """A function (environment) -> a ready server, with `metrics()` and `health(service)`."""
    processes = []

    def start(environment):
        port_file = tmp_path / "ports"
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(
                [_program("tidal-server"), "--listen_address=127.0.0.1:0",
                 "--metrics_address=127.0.0.1:0", f"--port_file={port_file}"],
                env={"PATH": os.environ["PATH"], **environment}, stdout=log, stderr=log)
        processes.append(process)

        def health(service):
            target = f"127.0.0.1:{_ports(port_file)['listen']}"
            output = subprocess.run([_program("tidal-client"), "health", f"--target={target}",
                                     f"--service={service}"],
                                    capture_output=True, text=True, check=False)
            return output.stdout.strip()

        def metrics():
            url = f"http://127.0.0.1:{_ports(port_file)['metrics']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read().decode()

        deadline = time.monotonic() + START_TIMEOUT_S
        while not (port_file.exists() and health("") == "SERVING"):
            assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "the server was not ready in time"
            time.sleep(0.05)
        return types.SimpleNamespace(process=process, health=health, metrics=metrics)

    yield start
    for process in processes:
        process.terminate()
        assert process.wait(60) == 0
