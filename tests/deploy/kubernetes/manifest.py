"""Looking into manifests."""

import re

import kubernetes_validate

# The newest Kubernetes whose schemas are asked, and the oldest that the manifests are written for.
KUBERNETES_VERSIONS = ("1.37", "1.31")
# Defined by what is installed into a cluster, so without a schema here.
CUSTOM_KINDS = {"HTTPRoute", "InferencePool", "PodMonitor", "ScaledObject"}


def check_schema(manifest):
    """Fails where a field is unknown or of a wrong type."""
    if manifest["kind"] in CUSTOM_KINDS:
        return
    for version in KUBERNETES_VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def of_kind(manifests, kind, name=None):
    """The only object of this kind (and name)."""
    found = [m for m in manifests
             if m["kind"] == kind and (name is None or m["metadata"]["name"] == name)]
    assert len(found) == 1, f"{len(found)} of kind {kind}, name {name}"
    return found[0]


def server_deployment(manifests):
    return of_kind(manifests, "Deployment", "tidal")


def server_pod(manifests):
    return server_deployment(manifests)["spec"]["template"]["spec"]


def server_container(manifests):
    (container,) = server_pod(manifests)["containers"]
    return container


def arguments_of(container):
    """{flag: value} of --flag=value arguments."""
    flags = {}
    for argument in container["args"]:
        name, value = re.fullmatch(r"--([\w-]+)=(.*)", argument).groups()
        flags[name] = value
    return flags


def seconds(duration):
    """Of a duration as Go and Abseil write it: 2m10s, 120s."""
    assert re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", duration) and duration, duration
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(n) * units[unit] for n, unit in re.findall(r"(\d+)([hms])", duration))


def check_restricted(pod):
    """Kubernetes' pod security standard `restricted`, a read-only root, and no token."""
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] > 0
    assert context["seccompProfile"]["type"] == "RuntimeDefault"
    assert not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert not any("hostPath" in volume for volume in pod.get("volumes", []))
    for container in pod["containers"] + pod.get("initContainers", []):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
