"""The overlays, rendered as `kubectl apply -k` would."""

import re

import pytest
import yaml

import manifest
from conftest import MODEL, ROOT
from renderer import render

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
ON_GPU = [name for name in OVERLAYS if name != "cpu"]
MODEL_IN_IMAGE = "/opt/tidal/share/tidal/models/needle"

_rendered = {}


def rendered(overlay):
    if overlay not in _rendered:
        _rendered[overlay] = render(KUBERNETES / "overlays" / overlay)
    return _rendered[overlay]


def server_flags_of(manifests):
    """The server's flags as its environment holds them, from the ConfigMap that the pod names."""
    container = manifest.server_container(manifests)
    (source,) = container["envFrom"]
    data = manifest.of_kind(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    assert all(isinstance(value, str) for value in data.values())
    return data


def test_there_is_an_overlay_for_each_purpose():
    assert OVERLAYS == ["autoscale", "autoscale-keda", "cpu", "gateway", "gpu"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_follow_the_schemas_and_share_the_namespace(overlay):
    for document in rendered(overlay):
        manifest.check_schema(document)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "tidal", document["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_flags_are_the_servers(overlay, server_flags):
    container = manifest.server_container(rendered(overlay))
    variables = {variable["name"] for variable in container.get("env", [])}
    variables |= set(server_flags_of(rendered(overlay)))
    for variable in variables:
        assert variable.startswith("TIDAL_") and variable == variable.upper()
        assert variable.removeprefix("TIDAL_").lower() in server_flags, variable
    for flag in manifest.arguments_of(container):
        assert flag in server_flags, flag


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_grace_period_outlasts_a_drain(overlay):
    pod = manifest.server_pod(rendered(overlay))
    flags = server_flags_of(rendered(overlay))
    pre_stop = manifest.server_container(rendered(overlay)).get("lifecycle", {}).get("preStop", {})
    source = (ROOT / "server" / "drain.h").read_text(encoding="utf-8")
    abort_s = int(re.search(r"abort_timeout = absl::Seconds\((\d+)\)", source).group(1))
    drain_s = (pre_stop.get("sleep", {}).get("seconds", 0)
               + manifest.seconds(flags["TIDAL_LAME_DUCK_INTERVAL"])
               + manifest.seconds(flags["TIDAL_SHUTDOWN_TIMEOUT"]) + abort_s)
    assert pod["terminationGracePeriodSeconds"] > drain_s
    assert manifest.seconds(flags["TIDAL_LAME_DUCK_INTERVAL"]) > 0 or pre_stop


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_run_without_privileges(overlay):
    for document in rendered(overlay):
        if document["kind"] == "Deployment":
            manifest.check_restricted(document["spec"]["template"]["spec"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_model_lies_in_the_image_or_on_a_volume(overlay):
    path = server_flags_of(rendered(overlay))["TIDAL_MODEL_PATH"]
    mounts = manifest.server_container(rendered(overlay)).get("volumeMounts", [])
    volumes = {v["name"]: v for v in manifest.server_pod(rendered(overlay)).get("volumes", [])}
    if path == MODEL_IN_IMAGE:
        assert MODEL_IN_IMAGE in (ROOT / "Dockerfile").read_text(encoding="utf-8")
        return
    (mount,) = [m for m in mounts if path.startswith(m["mountPath"] + "/")]
    assert mount["readOnly"] is True
    claim = manifest.of_kind(rendered(overlay), "PersistentVolumeClaim")["metadata"]["name"]
    assert volumes[mount["name"]]["persistentVolumeClaim"]["claimName"] == claim


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_memory_is_asked_for_and_limited(overlay):
    resources = manifest.server_container(rendered(overlay))["resources"]
    assert "memory" in resources["requests"] and "memory" in resources["limits"]
    # A limit of CPU time would pause the server in the midst of a step.
    assert "cpu" in resources["requests"] and "cpu" not in resources["limits"]


@pytest.mark.parametrize("overlay", ON_GPU)
def test_a_gpu_pod_has_a_gpu_or_fails(overlay):
    resources = manifest.server_container(rendered(overlay))["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    keys = {t["key"] for t in manifest.server_pod(rendered(overlay))["tolerations"]}
    assert "nvidia.com/gpu" in keys
    assert server_flags_of(rendered(overlay))["TIDAL_DEVICE"] == "cuda"
    assert manifest.server_container(rendered(overlay))["image"].endswith(":cuda")


def test_a_cpu_pod_takes_the_threads_it_asks_for():
    container = manifest.server_container(rendered("cpu"))
    (threads,) = [v for v in container["env"] if v["name"] == "TIDAL_CPU_THREADS"]
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"
    assert container["image"].endswith(":cpu")


def test_the_server_serves_with_the_cpu_overlays_flags(start_server):
    flags = dict(server_flags_of(rendered("cpu")))
    assert flags["TIDAL_MODEL_PATH"] == MODEL_IN_IMAGE
    # The same model from the source tree, one thread, and no more memory than a test needs.
    server = start_server({**flags, "TIDAL_MODEL_PATH": str(MODEL), "TIDAL_CPU_THREADS": "1",
                           "TIDAL_KV_CACHE_MEMORY": "64MiB", "TIDAL_MAX_MODEL_LEN": "1024",
                           "TIDAL_LAME_DUCK_INTERVAL": "0s"})
    assert server.health("readiness") == "SERVING"


def test_metrics_that_others_rely_on_are_the_servers(start_server):
    names = set()
    autoscaler = manifest.of_kind(rendered("autoscale"), "HorizontalPodAutoscaler")
    names |= {m["pods"]["metric"]["name"] for m in autoscaler["spec"]["metrics"]}
    scaled = manifest.of_kind(rendered("autoscale-keda"), "ScaledObject")
    for trigger in scaled["spec"]["triggers"]:
        names |= set(re.findall(r"tidal_\w+", trigger["metadata"]["query"]))
    adapter = yaml.safe_load(
        (KUBERNETES / "components/autoscale-hpa/prometheus-adapter-values.yaml").read_text())
    served_by_adapter = {rule["seriesQuery"].split("{")[0] for rule in adapter["rules"]["custom"]}
    assert served_by_adapter == {m["pods"]["metric"]["name"]
                                 for m in autoscaler["spec"]["metrics"]}
    config = _picker_config()
    (extractor,) = [p for p in config["plugins"] if p["type"] == "core-metrics-extractor"]
    (engine,) = extractor["parameters"]["engineConfigs"]
    assert engine["name"] == extractor["parameters"]["defaultEngine"]
    names |= {value for key, value in engine.items() if key.endswith("Spec") and value}
    assert len(names) >= 4
    server = start_server({"TIDAL_MODEL_PATH": str(MODEL), "TIDAL_DEVICE": "cpu",
                           "TIDAL_SELECTION_LAYERS": "2,5", "TIDAL_MAX_MODEL_LEN": "1024"})
    text = server.metrics()
    for name in names:
        assert re.search(rf"^# TYPE {name} gauge$", text, re.MULTILINE), name


@pytest.mark.parametrize("overlay,kind", [("autoscale", "HorizontalPodAutoscaler"),
                                          ("autoscale-keda", "ScaledObject")])
def test_an_autoscaler_owns_the_number_of_replicas(overlay, kind):
    deployment = manifest.server_deployment(rendered(overlay))
    assert "replicas" not in deployment["spec"]
    target = manifest.of_kind(rendered(overlay), kind)["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])


@pytest.mark.parametrize("overlay", ["autoscale", "autoscale-keda"])
def test_an_autoscaler_has_metrics_to_go_by(overlay):
    manifests = rendered(overlay)
    monitor = manifest.of_kind(manifests, "PodMonitor")["spec"]
    labels = manifest.server_deployment(manifests)["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for port in manifest.server_container(manifests)["ports"]}
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["metrics"]
    assert "metrics" in ports


def _picker_config():
    container = _picker_container()
    (mount,) = container["volumeMounts"]
    pod = manifest.of_kind(rendered("gateway"), "Deployment", "tidal-endpoint-picker")
    (volume,) = pod["spec"]["template"]["spec"]["volumes"]
    data = manifest.of_kind(rendered("gateway"), "ConfigMap", volume["configMap"]["name"])["data"]
    path = manifest.arguments_of(container)["config-file"]
    folder, _, file = path.rpartition("/")
    assert folder == mount["mountPath"]
    return yaml.safe_load(data[file])


def _picker_container():
    deployment = manifest.of_kind(rendered("gateway"), "Deployment", "tidal-endpoint-picker")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def test_the_gateways_pool_is_the_servers_over_http2():
    manifests = rendered("gateway")
    pool = manifest.of_kind(manifests, "InferencePool")["spec"]
    labels = manifest.server_deployment(manifests)["spec"]["template"]["metadata"]["labels"]
    assert pool["selector"]["matchLabels"].items() <= labels.items()
    assert pool["appProtocol"] == "kubernetes.io/h2c"
    ports = {p["name"]: p["containerPort"] for p in manifest.server_container(manifests)["ports"]}
    assert pool["targetPorts"] == [{"number": ports["grpc"]}]
    flags = manifest.arguments_of(_picker_container())
    assert int(flags["model-server-metrics-port"]) == ports["metrics"]
    assert flags["pool-name"] == manifest.of_kind(manifests, "InferencePool")["metadata"]["name"]
    picker = manifest.of_kind(manifests, "Service", pool["endpointPickerRef"]["name"])
    assert pool["endpointPickerRef"]["port"]["number"] == picker["spec"]["ports"][0]["port"]


def test_the_route_names_services_of_the_api():
    (rule,) = manifest.of_kind(rendered("gateway"), "HTTPRoute")["spec"]["rules"]
    protos = "".join(path.read_text(encoding="utf-8")
                     for path in (ROOT / "proto/tidal/inference/v1").glob("*.proto"))
    services = {f"/tidal.inference.v1.{name}"
                for name in re.findall(r"^service (\w+) ", protos, re.MULTILINE)}
    assert {match["path"]["value"] for match in rule["matches"]} <= services
    pool = manifest.of_kind(rendered("gateway"), "InferencePool")["metadata"]["name"]
    assert [ref["name"] for ref in rule["backendRefs"]] == [pool]
