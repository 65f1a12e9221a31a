"""docs/operations.md: what it quotes is there."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SIZE_MEMORY = ROOT / "scripts" / "size_memory.py"
# Flags of other programs.
FOREIGN_FLAGS = {"config.file", "web.listen-address", "time", "memory_gib", "context", "build"}


def _quoted_messages():
    table = DOCUMENT.split("### By message")[1]
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def _source_text():
    """All C++ with literals that follow each other joined."""
    files = [path for folder in ("engine", "server", "cuda")
             for path in sorted((ROOT / folder).rglob("*.cc"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r'"\s*\n\s*"', "", text)


@pytest.fixture(scope="module")
def sources():
    return _source_text()


@pytest.mark.parametrize("message", [*_quoted_messages(), "serving on the CPU: CUDA cannot"])
def test_a_quoted_message_is_one_of_the_servers(sources, message):
    assert message in sources
    assert message in DOCUMENT


def test_messages_are_found_in_the_document():
    assert len(_quoted_messages()) >= 15


def test_the_tables_of_sizes_are_the_scripts():
    tables = subprocess.run([sys.executable, str(SIZE_MEMORY), "--table"], capture_output=True,
                            text=True, check=True).stdout.strip().split("\n\n")
    assert len(tables) == 2
    for table in tables:
        assert table in DOCUMENT


def test_flags_are_the_servers():
    program = pathlib.Path(os.environ["TIDAL_BIN_DIR"]) / "tidal-server"
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True,
                               check=False).stdout
    known = set(re.findall(r"^ +--(\w+) ", help_text, re.MULTILINE))
    used = set(re.findall(r"--([a-z][\w.-]*\w)", DOCUMENT)) - FOREIGN_FLAGS
    assert len(used) > 15
    assert used <= known | {"previous"}, used - known


def test_metrics_are_the_servers_or_the_rules():
    rules = (ROOT / "deploy" / "prometheus" / "recording_rules.yml").read_text(encoding="utf-8")
    recorded = set(re.findall(r"record: \w+:(tidal_\w+):", rules))
    metrics = (ROOT / "server" / "prometheus_metrics.cc").read_text(encoding="utf-8")
    known = recorded | set(re.findall(r'"(tidal_\w+)"', metrics))
    used = set(re.findall(r"\b(tidal_\w+)", DOCUMENT))
    assert len(used) > 10
    assert used <= known, used - known


def test_links_lead_somewhere():
    headings = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
                for heading in re.findall(r"^#+ (.+)$", DOCUMENT, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", DOCUMENT):
        path, _, anchor = target.partition("#")
        assert (ROOT / "docs" / path).exists(), target
        if not path:
            assert anchor in headings, target
