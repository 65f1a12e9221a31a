"""docs/api.md: up to date, and its calls work."""

import os
import pathlib
import re
import subprocess
import sys

import grpc
import pytest
from google.protobuf import json_format

ROOT = pathlib.Path(__file__).resolve().parents[3]
DOCUMENT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
# The calls with a JSON request to services of ours.
GRPCURL_CALLS = re.findall(r"-d '(\{.*?\})'[\s\\]+localhost:50051 tidal\.inference\.v1\.(\w+)/(\w+)",
                           DOCUMENT)


def test_the_document_is_what_its_script_writes():
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_api_docs.py"), "--check"],
                   check=True)


def test_links_lead_to_headings():
    headings = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
                for heading in re.findall(r"^#+ (.+)$", DOCUMENT, re.MULTILINE)}
    links = set(re.findall(r"\]\(#([^)]+)\)", DOCUMENT))
    assert len(links) > 20
    assert links <= headings


@pytest.mark.parametrize("json,service,method", GRPCURL_CALLS)
def test_a_request_written_as_json_is_answered(tidal_client, server, json, service, method):
    """grpcurl itself is in neither Debian nor PyPI: its JSON goes through protobuf's own reader."""
    from tidal.inference.v1 import inference_pb2, inference_pb2_grpc

    request = json_format.Parse(json, getattr(inference_pb2, f"{method}Request")())
    with grpc.insecure_channel(server.address()) as channel:
        stub = getattr(inference_pb2_grpc, f"{service}Stub")(channel)
        if method == "GenerateStream":
            request.stopping.max_new_tokens = 16
            *_, answer = getattr(stub, method)(request, timeout=60)
            assert answer.WhichOneof("event") == "finished"
        else:
            assert getattr(stub, method)(request, timeout=60).ByteSize() > 0


def test_there_are_calls_of_each_kind():
    assert {method for _, _, method in GRPCURL_CALLS} == {"Generate", "GenerateStream", "Tokenize"}


def test_the_cpp_example_prints_what_the_python_one_does(tidal_client, server, prompt):
    program = pathlib.Path(os.environ["TIDAL_BIN_DIR"]) / "tidal-example-stream"
    done = subprocess.run([program, server.address(), prompt], capture_output=True, text=True,
                          check=True)
    with tidal_client.Client(server.address()) as client:
        answer = client.generate(prompt, sampling=tidal_client.Sampling(temperature=0),
                                 stopping=tidal_client.Stopping(max_new_tokens=64),
                                 attention=tidal_client.Attention("tidal", token_budget=256))
    assert done.stdout == answer.text + "\n"
    failed = subprocess.run([program, "127.0.0.1:1", prompt], capture_output=True, text=True,
                            check=False)
    assert failed.returncode == 1 and "UNAVAILABLE" in failed.stderr
