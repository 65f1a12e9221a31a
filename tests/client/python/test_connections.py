"""Encryption, tokens, limits, and the package as installed."""

import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "client" / "python" / "examples"
TOKEN = "a-token-of-the-tests-0123"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) of a server that vouches for itself."""
    folder = tmp_path_factory.mktemp("certificate")
    paths = folder / "server.pem", folder / "server.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=tidal",
                    "-addext", "subjectAltName=DNS:tidal.test", "-out", paths[0],
                    "-keyout", paths[1]], check=True, capture_output=True)
    return paths


@pytest.fixture(scope="module")
def guarded_server(start_server, certificate, tmp_path_factory):
    """Takes encrypted calls with TOKEN only, and one generation of a client at a time."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"tester:{TOKEN}\n", encoding="utf-8")
    return start_server(f"--tls_certificate_file={certificate[0]}",
                        f"--tls_key_file={certificate[1]}", f"--auth_token_file={tokens}",
                        "--health_address=127.0.0.1:0", "--max_client_requests=1")


@pytest.fixture
def tls(tidal_client, certificate):
    return tidal_client.Tls(ca_file=certificate[0], server_name="tidal.test")


def test_an_encrypted_call_with_its_token_is_served(tidal_client, guarded_server, tls):
    with tidal_client.Client(guarded_server.address(), tls=tls, token=TOKEN) as client:
        assert client.model_info(timeout=30).model_name == "needle"
        assert client.health() is tidal_client.HealthStatus.SERVING


def test_a_wrong_token_is_unauthenticated(tidal_client, guarded_server, tls):
    for token in (None, "another-token-0123456789"):
        with tidal_client.Client(guarded_server.address(), tls=tls, token=token) as client:
            with pytest.raises(tidal_client.UnauthenticatedError):
                client.model_info(timeout=30)


def test_a_server_of_another_authority_is_not_talked_to(tidal_client, guarded_server):
    with tidal_client.Client(guarded_server.address(), tls=tidal_client.Tls(),
                             token=TOKEN) as client:
        with pytest.raises(tidal_client.UnavailableError):
            client.model_info(timeout=30)


def test_a_clients_limit_says_when_to_call_again(tidal_client, guarded_server, tls):
    with tidal_client.Client(guarded_server.address(), tls=tls, token=TOKEN) as client:
        endless = tidal_client.Stopping(max_new_tokens=12000, ignore_eos=True)
        with client.stream("hello", stopping=endless) as stream:
            assert isinstance(next(iter(stream)), tidal_client.Started)
            with pytest.raises(tidal_client.ResourceExhaustedError) as caught:
                client.generate("hello")
    assert caught.value.retry_after_seconds > 0


def test_half_of_a_clients_certificate_is_refused(tidal_client):
    with pytest.raises(ValueError, match="belong together"):
        tidal_client.Tls(cert_file="me.pem")


def test_the_package_has_stubs_types_and_a_version(installed, tidal_client):
    for name in ("admin", "attention", "inference", "model"):
        assert (installed / "tidal" / "inference" / "v1" / f"{name}_pb2.py").exists()
        assert (installed / "tidal" / "inference" / "v1" / f"{name}_pb2.pyi").exists()
    assert (installed / "tidal_client" / "py.typed").exists()
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    version = importlib.metadata.distribution("tidal-client").version
    assert f"VERSION {version}" in cmake
    assert all(hasattr(tidal_client, name) for name in tidal_client.__all__)


def _example(installed, name, *arguments):
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *map(str, arguments)],
                          capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(installed)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_stream_example_prints_the_answer(installed, server, prompt):
    output = _example(installed, "stream.py", prompt, f"--target={server.address()}")
    assert "tokens, the first one after" in output.splitlines()[-1]


def test_the_documents_example_answers_each(installed, server, prompt, tmp_path):
    document, question = prompt.rsplit("\n", 1) if "\n" in prompt else (prompt, "")
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    for path in paths:
        path.write_text(document, encoding="utf-8")
    output = _example(installed, "concurrent_documents.py", question, *paths,
                      f"--target={server.address()}")
    assert [line.split(": ")[0] for line in output.splitlines()] == [str(path) for path in paths]


def test_the_attention_example_reads_less_with_a_smaller_budget(installed, server, prompt,
                                                                tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(prompt, encoding="utf-8")
    lines = _example(installed, "attention_per_request.py", path, "--budgets=128,64",
                     f"--target={server.address()}").splitlines()
    assert [line.split(",")[0] for line in lines] == ["full", "tidal", "tidal"]
    shares = [float(line.split("read")[1].split("%")[0]) for line in lines]
    assert shares[0] == 100 > shares[1] > shares[2] > 0
