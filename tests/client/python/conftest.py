"""Installs the Python client as a user would, and starts real servers.

TIDAL_BIN_DIR names the folder of the programs; CTest sets it.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts" / "lib"))

import local_server  # noqa: E402


def _install(folder):
    """Into a folder of its own, from a copy, since a build writes into its source."""
    source = folder / "source"
    shutil.copytree(ROOT / "client" / "python", source / "client" / "python",
                    ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    shutil.copytree(ROOT / "proto" / "tidal", source / "proto" / "tidal")
    installed = folder / "installed"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--no-build-isolation", "--disable-pip-version-check",
                    f"--target={installed}", str(source / "client" / "python")], check=True)
    return installed


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The folder that `pip install` has written."""
    folder = _install(tmp_path_factory.mktemp("client"))
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture(scope="session")
def tidal_client(installed):
    """The package."""
    import tidal_client as package

    assert pathlib.Path(package.__file__).is_relative_to(installed)
    return package


@pytest.fixture(scope="module")
def start_server(tmp_path_factory):
    """start_server(*flags) -> LocalServer; all are stopped, in order, at the file's end."""
    servers = []

    def start(*flags):
        servers.append(local_server.LocalServer(os.environ["TIDAL_BIN_DIR"],
                                                tmp_path_factory.mktemp("server"),
                                                "--kv_cache_memory=128MiB",
                                                "--selection_layers=2,5", *flags))
        return servers[-1]

    yield start
    statuses = [server.close() for server in servers]
    assert statuses == [0] * len(servers)


@pytest.fixture(scope="module")
def server(start_server):
    return start_server()


@pytest.fixture(scope="session")
def prompt():
    """400 tokens that hide a passphrase, and end with the question for it."""
    grammar = ROOT / "models" / "needle" / "grammar.py"
    return subprocess.run([sys.executable, str(grammar), "--tokens=400"], check=True,
                          capture_output=True, text=True).stdout.rstrip("\n")
