"""deploy/grafana: every query has an answer, from a real Prometheus that watches a loaded server.

TIDAL_BIN_DIR names the folder of the programs; CTest sets it.
"""

import importlib.metadata
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models import dashboard as grafana_dashboard

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts" / "lib"))

import local_server  # noqa: E402
import monitored_server  # noqa: E402

GRAFANA = ROOT / "deploy" / "grafana"
PANELS = monitored_server.dashboard_panels()
# What is 0 in a healthy server that has nothing to do any more.
MAY_BE_ZERO = {
    "Faults of the engine", "KV cache in use", "KV cache in use by server",
    "Preemptions by server", "Requests running and waiting", "Time since the last progress",
    "Waiting prompt tokens by server", "Waiting requests by server",
    "First and other tokens that came late",
}


def _load(server):
    """Traffic of every kind, for a few seconds."""
    background = server.start_client(
        "bench", "--concurrency=4", "--duration=8s", "--num_requests=100000",
        "--prompt_tokens=uniform:300:600", "--output_tokens=uniform:8:24", "--token_budget=64")
    prompt = "Once upon a time " * 40
    for _ in range(2):  # the second one finds the first one's prompt in the cache
        server.client("generate", prompt, "--attention=full", "--max_new_tokens=4",
                      "--temperature=0")
    live = server.start_client("generate", prompt, "--request_id=live", "--ignore_eos", "--json",
                               "--max_new_tokens=7000")
    assert '"started"' in live.stdout.readline()
    refused = server.client("generate", prompt, "--request_id=live", check=False)
    assert refused.returncode == 4, refused.stderr
    live.send_signal(signal.SIGINT)  # cancels the request
    live.communicate()
    assert live.returncode == 130
    background.communicate()
    assert background.returncode == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = monitored_server.MonitoredServer(
        os.environ["TIDAL_BIN_DIR"], tmp_path_factory.mktemp("monitored"),
        "--kv_cache_memory=64MiB", "--selection_layers=2,5")
    try:
        _load(running.server)
        time_of_load = time.time()
        # The last samples are scraped, and the rules that need them are evaluated.
        local_server.wait_until(lambda: time.time() > time_of_load + 3, "two scrapes", 10)
        yield running
    finally:
        running.close()


def _finite(series):
    return [value for one in series for value in [float(one["value"][1])] if math.isfinite(value)]


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_every_query_of_a_panel_has_an_answer(server, panel):
    for target in panel["targets"]:
        expression = monitored_server.with_variables(target["expr"])
        values = _finite(server.query(expression))
        assert values, expression
        if panel["title"] not in MAY_BE_ZERO:
            assert max(values) > 0, expression


def test_panels_say_what_they_show():
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    titles = [panel["title"] for panel in PANELS]
    assert len(titles) == len(set(titles))
    assert MAY_BE_ZERO <= set(titles)


def test_panels_do_not_overlap():
    dashboard = json.loads((GRAFANA / "dashboards" / "tidal.json").read_text(encoding="utf-8"))
    cells = set()
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        own = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"])
               for y in range(grid["y"], grid["y"] + grid["h"])}
        assert not own & cells, panel["title"]
        cells |= own


def test_dashboard_is_what_its_script_writes():
    subprocess.run([sys.executable, str(GRAFANA / "make_dashboard.py"), "--check"], check=True)


def _lost(before, after, path=""):
    """Paths of `before` that `after` has not, or has otherwise."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [lost for key in before
                for lost in _lost(before[key], after.get(key), f"{path}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [lost for index, pair in enumerate(zip(before, after))
                for lost in _lost(*pair, f"{path}/{index}")]
    return [] if before == after else [path]


def test_grafanas_own_types_hold_all_that_the_dashboard_says():
    """Those of the Grafana that deploy/compose.yaml starts: a field that they do not know is lost."""
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    version = compose["services"]["grafana"]["image"].split(":")[1]
    assert importlib.metadata.version("grafana-foundation-sdk").split("!")[1] == version
    plugins.register_default_plugins()
    written = json.loads((GRAFANA / "dashboards" / "tidal.json").read_text(encoding="utf-8"))
    read = grafana_dashboard.Dashboard.from_json(written)
    lost = _lost(written, json.loads(encoder.JSONEncoder().encode(read)))
    # The editor's text of a variable's query, beside the query itself.
    assert [path for path in lost if not re.fullmatch(r"/templating/list/\d/definition", path)] == []


def test_provisioning_names_the_datasource_and_the_folder():
    folder = GRAFANA / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text("utf-8"))
    assert [one["type"] for one in source["datasources"]] == ["prometheus"]
    provider = yaml.safe_load((folder / "dashboards" / "tidal.yml").read_text("utf-8"))
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"


def test_every_rule_is_evaluated_without_error(server):
    rules = server.rules()
    assert len(rules) > 50
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] == "err"} == {}


def test_no_rule_names_a_metric_that_the_server_lacks(server):
    known = {name for one in server.query('count by (__name__) ({__name__=~"tidal_.+"})')
             for name in [one["metric"]["__name__"]]}
    used = set()
    for path in (ROOT / "deploy" / "prometheus").glob("*s.yml"):
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        used |= set(re.findall(r"(?<![\w:])tidal_\w+(?!\w*:)", text))
    assert used and used <= known, used - known


def test_memory_is_what_the_sizing_script_computes(server):
    output = subprocess.run([sys.executable, str(ROOT / "scripts" / "size_memory.py"),
                             str(ROOT / "models" / "needle" / "config.json"), "--device=cpu"],
                            capture_output=True, text=True, check=True).stdout
    computed = {name: int(number.replace(",", "")) for name, number
                in re.findall(r"^(weights|KV cache a token) +([\d,]+) bytes", output, re.MULTILINE)}
    measured = {one["metric"]["kind"]: float(one["value"][1])
                for one in server.query("tidal_memory_bytes")}
    blocks = float(server.query("sum(tidal_kv_blocks)")[0]["value"][1])
    assert measured["weights"] == computed["weights"]
    assert measured["kv_cache"] == blocks * 16 * computed["KV cache a token"]
