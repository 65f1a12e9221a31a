"""deploy/compose.yaml and compose.gpu.yaml: against the schema of the Compose specification, and
against what they refer to. No container runs here."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FILES = ["compose.yaml", "compose.gpu.yaml"]
ABORT_INTERVAL_S = 6  # what the server adds to its shutdown timeout


def _services(name):
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))["services"]


@pytest.fixture(scope="module")
def server_flags():
    program = pathlib.Path(os.environ["TIDAL_BIN_DIR"]) / "tidal-server"
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True,
                               check=False).stdout
    return set(re.findall(r"^ +--(\w+) ", help_text, re.MULTILINE))


@pytest.mark.parametrize("name", FILES)
def test_it_follows_the_specification(name):
    output = subprocess.run([sys.executable, "-m", "check_jsonschema", "--builtin-schema",
                             "vendor.compose-spec", str(DEPLOY / name)], capture_output=True,
                            text=True, check=False)
    assert output.returncode == 0, output.stdout + output.stderr


def test_the_schema_is_one_that_refuses(tmp_path):
    wrong = tmp_path / "compose.yaml"
    wrong.write_text("services: {tidal: {imagee: tidal}}\n", encoding="utf-8")
    output = subprocess.run([sys.executable, "-m", "check_jsonschema", "--builtin-schema",
                             "vendor.compose-spec", str(wrong)], capture_output=True, text=True,
                            check=False)
    assert output.returncode != 0 and "imagee" in output.stdout


@pytest.mark.parametrize("name", FILES)
def test_mounted_files_exist_and_are_read_only(name):
    for service in _services(name).values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert volume.endswith(":ro"), volume


def test_every_file_that_prometheus_names_is_mounted():
    mounted = {volume.split(":")[1]: volume.split(":")[0]
               for volume in _services("compose.yaml")["prometheus"]["volumes"]}
    config = yaml.safe_load((DEPLOY / mounted["/etc/prometheus/prometheus.yml"]).read_text("utf-8"))
    target_files = config["scrape_configs"][0]["file_sd_configs"][0]["files"]
    for name in [*config["rule_files"], *target_files]:
        assert f"/etc/prometheus/{name}" in mounted, name
    targets = yaml.safe_load((DEPLOY / mounted["/etc/prometheus/targets.yml"]).read_text("utf-8"))
    service, port = targets[0]["targets"][0].split(":")
    assert service in _services("compose.yaml")
    assert f"EXPOSE 50051 {port}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_grafana_finds_its_datasource_and_dashboards():
    services = _services("compose.yaml")
    environment = services["grafana"]["environment"]
    service, port = re.fullmatch(r"http://(\w+):(\d+)", environment["PROMETHEUS_URL"]).groups()
    assert any(mapping.endswith(f":{port}") for mapping in services[service]["ports"])
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text("utf-8")
    assert "${PROMETHEUS_URL}" in source
    mounted = dict(reversed(volume.split(":")[:2]) for volume in services["grafana"]["volumes"])
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/tidal.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    home = pathlib.Path(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == pathlib.Path(folder)
    assert (DEPLOY / mounted[folder] / home.name).exists()


def test_ports_are_this_machines_alone():
    for service in _services("compose.yaml").values():
        for mapping in service["ports"]:
            assert mapping.startswith("127.0.0.1:"), mapping


def test_the_server_is_asked_for_what_it_knows(server_flags):
    for name in FILES:
        server = _services(name)["tidal"]
        flags = {flag.removeprefix("--").split("=")[0] for flag in server.get("command", [])}
        flags |= {variable.removeprefix("TIDAL_").lower()
                  for variable in server.get("environment", {})}
        assert flags <= server_flags
        dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
        assert f"AS {server['build']['target']}\n" in dockerfile


def test_a_stop_waits_longer_than_the_drain():
    server = _services("compose.yaml")["tidal"]
    drain = int(server["environment"]["TIDAL_SHUTDOWN_TIMEOUT"].removesuffix("s"))
    grace = int(server["stop_grace_period"].removesuffix("s"))
    assert grace > drain + ABORT_INTERVAL_S


def test_the_server_has_no_more_rights_than_it_needs():
    server = _services("compose.yaml")["tidal"]
    assert server["read_only"] is True and server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
