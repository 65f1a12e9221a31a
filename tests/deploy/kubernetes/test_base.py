"""The base's files as they are, without rendering."""

import re

import pytest
import yaml

import manifest
from conftest import MODEL, ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
PLAIN_FILES = sorted(
    path for path in KUBERNETES.rglob("*.yaml")
    if path.name != "kustomization.yaml" and "overlays" not in path.parts
    and path.name not in ("mount.yaml", "prometheus-adapter-values.yaml",
                          "endpoint-picker-config.yaml"))


def load(*files):
    return [m for file in files
            for m in yaml.safe_load_all((KUBERNETES / file).read_text(encoding="utf-8"))]


@pytest.fixture(name="base")
def fixture_base():
    folder = KUBERNETES / "base"
    files = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return load(*(f"base/{file}" for file in files))


@pytest.mark.parametrize("path", PLAIN_FILES, ids=lambda p: str(p.relative_to(KUBERNETES)))
def test_each_file_follows_the_schema(path):
    for document in load(path):
        manifest.check_schema(document)


def test_the_base_names_all_its_files(base):
    assert len(list((KUBERNETES / "base").glob("*.yaml"))) == 7
    assert {m["kind"] for m in base} == {"Namespace", "ServiceAccount", "Deployment", "Service",
                                         "PodDisruptionBudget", "NetworkPolicy"}


def test_the_server_runs_without_privileges_and_as_the_image_does(base):
    pod = manifest.server_pod(base)
    manifest.check_restricted(pod)
    assert pod["automountServiceAccountToken"] is False
    account = manifest.of_kind(base, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert account["metadata"]["name"] == pod["serviceAccountName"]
    users = re.findall(r"^USER (.+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"),
                       re.MULTILINE)
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert users == [user, user]


def test_the_model_loader_runs_without_privileges():
    (pod,) = load("model-loader.yaml")
    manifest.check_restricted(pod["spec"])


def test_variables_of_services_are_not_taken_for_flags(base):
    # A service named tidal would give every pod TIDAL_PORT and the like.
    assert manifest.server_pod(base)["enableServiceLinks"] is False


def test_ports_agree(base):
    container = manifest.server_container(base)
    flags = manifest.arguments_of(container)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert flags["listen_address"] == f"0.0.0.0:{ports['grpc']}"
    assert flags["metrics_address"] == f"0.0.0.0:{ports['metrics']}"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == ports["grpc"]
    for service in (m for m in base if m["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports
            assert port["port"] == ports[port["targetPort"]]
    policy = manifest.of_kind(base, "NetworkPolicy")
    assert {p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]} == set(ports)
    exposed = re.findall(r"^EXPOSE (.+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"),
                         re.MULTILINE)
    assert exposed == [f"{ports['grpc']} {ports['metrics']}"] * 2


def test_grpc_services_speak_http2_and_one_has_no_address(base):
    services = {m["metadata"]["name"]: m["spec"] for m in base if m["kind"] == "Service"}
    for spec in services.values():
        (grpc_port,) = [port for port in spec["ports"] if port["name"] == "grpc"]
        assert grpc_port["appProtocol"] == "kubernetes.io/h2c"
    assert services["tidal-headless"]["clusterIP"] == "None"
    assert "clusterIP" not in services["tidal"]


def test_selectors_find_the_servers_pods(base):
    deployment = manifest.server_deployment(base)["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [deployment["selector"]["matchLabels"]]
    selectors += [m["spec"]["selector"] for m in base if m["kind"] == "Service"]
    selectors += [manifest.of_kind(base, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]]
    selectors += [manifest.of_kind(base, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    for selector in selectors:
        assert selector and selector.items() <= labels.items()


def test_probes_ask_for_services_that_the_server_knows(base, start_server):
    server = start_server({"TIDAL_MODEL_PATH": str(MODEL), "TIDAL_DEVICE": "cpu",
                           "TIDAL_SELECTION_LAYERS": "2,5", "TIDAL_MAX_MODEL_LEN": "1024"})
    container = manifest.server_container(base)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server.health(container[probe]["grpc"]["service"]) == "SERVING", probe
    assert server.health("no_such_service") != "SERVING"


def test_probes_are_patient(base):
    container = manifest.server_container(base)
    startup = container["startupProbe"]
    assert startup["grpc"]["service"] == "readiness"
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert manifest.server_deployment(base)["spec"]["progressDeadlineSeconds"] > 600
    liveness = container["livenessProbe"]
    assert liveness["grpc"]["service"] == "liveness"
    assert liveness["timeoutSeconds"] >= 15 and liveness["failureThreshold"] >= 10
    assert container["readinessProbe"]["grpc"]["service"] == "readiness"
