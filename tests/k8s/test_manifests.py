"""What kustomize builds is Kubernetes, fits together, and keeps the rules that we set ourselves."""

import os
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from gateway import settings
from gateway.config import Config, router_config, worker_config
from gateway.node import timing
from tests.k8s.manifests import (
    K8S,
    PLACES,
    built_with,
    container,
    of_kind,
    pod,
    resources,
    secret_keys,
    settings_of,
    workloads,
)
from tests.servers.certificates import self_signed

# The three newest that kubernetes-validate, at the version in pyproject.toml, has schemas of.
VERSIONS = ("1.35", "1.36", "1.37")
ROLES = ("gateway", "router")
# kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster, "Safe and Unsafe Sysctls", with the version of each.
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
}
# The example pair of ZeroMQ's manual (zmq_curve), known to everybody: its halves belong together.
PUBLIC_KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
SECRET_KEY = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"

place_and_role = pytest.mark.parametrize(("place", "role"), [(place, role) for place in PLACES for role in ROLES])
each_place = pytest.mark.parametrize("place", PLACES)


def selected(selector: dict[str, str], place: str) -> Iterator[str]:
    for role, workload in workloads(place).items():
        if selector.items() <= workload["spec"]["template"]["metadata"]["labels"].items():
            yield role


@cache
def pair() -> str:
    """A certificate that signed itself, and its key, for whatever is mounted."""
    with tempfile.TemporaryDirectory() as folder:
        return "".join(file.read_text() for file in self_signed(Path(folder)))


def config_of(
    place: str, role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, regions: str = "", **more: str
) -> Config:
    """The configuration that a pod would start with: the node's own reading of the variables of its container."""
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        monkeypatch.delenv(name)
    secrets = {
        "auth-secret": "x" * 32,
        "admin-token": "y" * 32,
        "bus-public-key": PUBLIC_KEY,
        "bus-secret-key": SECRET_KEY,
        "redis-url": "redis://redis:6379/0",
        "log-regions": regions,
        "etcd-user": "holdfast",
        "etcd-password": "secret",
    }
    fields = {"metadata.name": f"holdfast-{role}-0", "status.podIP": "10.0.0.5"}
    variables = settings_of(place, role) | more
    for one in container(place, role)["env"]:
        source = one.get("valueFrom", {})
        if "secretKeyRef" in source:
            value = secrets[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            value = fields[source["fieldRef"]["fieldPath"]]
        else:
            value = re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], one["value"])
        variables[one["name"]] = value
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for name, value in variables.items():
        if value.startswith("/etc/holdfast/"):
            assert any(value.startswith(mount["mountPath"]) for mount in container(place, role)["volumeMounts"])
            value = str(mounted / Path(value).name)
            Path(value).write_text(pair())
        variables[name] = value
    return settings.load(None, variables, {}, settings.Machine.here())


@each_place
@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid(place: str, version: str) -> None:
    assert len(resources(place)) >= 9
    for resource in resources(place):
        kubernetes_validate.validate(resource, version, strict=True)


def test_the_versions_are_the_newest_three_that_there_are_schemas_of() -> None:
    parsed = sorted({tuple(map(int, one.split(".")[:2])) for one in kubernetes_validate.utils.all_versions()})
    assert [f"{major}.{minor}" for major, minor in parsed[-3:]] == list(VERSIONS)


def broken(spoil: str) -> dict[str, Any]:
    deployment = of_kind("base", "Deployment")["holdfast-gateway"]
    inside = deployment["spec"]["template"]["spec"]["containers"][0]
    if spoil == "misspelt":
        inside["readynessProbe"] = inside.pop("readinessProbe")
    elif spoil == "mistyped":
        deployment["spec"]["replicas"] = "two"
    else:
        del deployment["spec"]["selector"]
    return deployment


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("spoil", ["misspelt", "mistyped", "missing"])
def test_a_broken_manifest_is_refused(spoil: str, version: str) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken(spoil), version, strict=True)


@place_and_role
def test_a_pod_has_no_rights_that_it_does_not_need(place: str, role: str) -> None:
    spec, inside = pod(place, role), container(place, role)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] >= 10_000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert inside["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in inside["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    assert mounts["tmp"] == "/tmp"
    assert {sysctl["name"] for sysctl in spec["securityContext"].get("sysctls", [])} <= SAFE_SYSCTLS


@each_place
@pytest.mark.parametrize("version", VERSIONS)
def test_what_sessions_missed_is_asked_of_gateways_at_a_port_of_its_own(
    place: str, version: str, tmp_path: Path
) -> None:
    built = built_with("recovery", place, tmp_path)
    for resource in built.values():
        kubernetes_validate.validate(resource, version, strict=True)
    (inside,) = built["Deployment", "holdfast-gateway"]["spec"]["template"]["spec"]["containers"]
    port = next(one["containerPort"] for one in inside["ports"] if one["name"] == "recovery")
    assert {"name": "HOLDFAST_RECOVERY_PORT", "value": str(port)} in inside["env"]
    ports = built["Service", "holdfast-gateway"]["spec"]["ports"]
    assert {"name": "recovery", "port": port, "targetPort": "recovery"} in ports
    everybody = next(one for one in built["NetworkPolicy", "holdfast-gateway"]["spec"]["ingress"] if "from" not in one)
    assert {"port": "recovery"} in everybody["ports"]
    assert "recovery" not in str(built["StatefulSet", "holdfast-router"])


@place_and_role
def test_where_there_are_regions_pods_of_both_roles_know_it(
    place: str, role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings_ = {"HOLDFAST_DIRECTORY_REGION": "eu", "HOLDFAST_NAMESPACES_GROUP_ACK": "replicated"}
    config = config_of(place, role, monkeypatch, tmp_path, "us=redis://us:6379/0", **settings_)
    assert router_config(config, epoch=1, endpoint="").log_regions == {"us": "redis://us:6379/0"}
    assert worker_config(config, index=0, epoch=1, router_endpoint="").region == "eu"


@place_and_role
def test_the_node_accepts_the_settings_of_its_pod(
    place: str, role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every variable is a known setting, and all of them together make a node of the cluster."""
    config = config_of(place, role, monkeypatch, tmp_path)
    assert config.clustered
    assert (config.node.role, config.node.name) == (role, f"holdfast-{role}-0")
    assert config.bus.advertise == ("[10.0.0.5]:7410" if role == "router" else "")
    ports = {port["name"]: port["containerPort"] for port in container(place, role)["ports"]}
    assert ports.pop("admin") == config.admin.port
    gateway = {"tcp": config.gateway.port, "websocket": config.gateway.ws_port}
    assert ports == (gateway if role == "gateway" else {"bus": 7410})


@place_and_role
def test_a_pod_is_not_killed_before_it_has_ended_by_itself(
    place: str, role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waits = timing(config_of(place, role, monkeypatch, tmp_path))
    before_s = container(place, role).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    leave_s = waits.router_leave_s if role == "router" else 0
    needed_s = before_s + waits.drain_s + waits.grace_s + waits.router_stop_s + leave_s
    assert pod(place, role)["terminationGracePeriodSeconds"] > needed_s


@place_and_role
def test_probes_ask_the_admin_port(place: str, role: str) -> None:
    inside = container(place, role)
    asked = {kind: inside[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: get["path"] for kind, get in asked.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {get["port"] for get in asked.values()} == {"admin"}


@each_place
def test_a_roll_takes_no_gateway_before_another_one_is_ready(place: str) -> None:
    gateway, router = (workloads(place)[role]["spec"] for role in ROLES)
    assert gateway["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "sleep" in container(place, "gateway")["lifecycle"]["preStop"]
    assert router["podManagementPolicy"] == "Parallel"
    assert router["updateStrategy"] == {"type": "RollingUpdate"}
    assert router["serviceName"] in of_kind(place, "Service")


@each_place
def test_what_selects_pods_selects_those_that_it_is_for(place: str) -> None:
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for name, one in of_kind(place, kind).items():
            assert [f"holdfast-{role}" for role in selected(one["spec"][key]["matchLabels"], place)] == [name], kind
        assert of_kind(place, kind).keys() == {f"holdfast-{role}" for role in ROLES}
    for name, service in of_kind(place, "Service").items():
        (role,) = selected(service["spec"]["selector"], place)
        assert name in (f"holdfast-{role}", "holdfast-admin")
        ports = {port["name"] for port in container(place, role)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for role, workload in workloads(place).items():
        assert list(selected(workload["spec"]["selector"]["matchLabels"], place)) == [role]
        for spread in pod(place, role)["topologySpreadConstraints"]:
            assert list(selected(spread["labelSelector"]["matchLabels"], place)) == [role]


def test_production_leaves_the_number_of_gateways_to_the_autoscaler() -> None:
    scaler = of_kind("overlays/production", "HorizontalPodAutoscaler")["holdfast-gateway"]["spec"]
    gateway, router = (workloads("overlays/production")[role] for role in ROLES)
    assert scaler["scaleTargetRef"] == {
        "apiVersion": gateway["apiVersion"],
        "kind": gateway["kind"],
        "name": gateway["metadata"]["name"],
    }
    assert "replicas" not in gateway["spec"]
    assert scaler["minReplicas"] == router["spec"]["replicas"] == 3
    page = (K8S.parent / "docs" / "operations" / "scaling.md").read_text()
    assert all(metric["pods"]["metric"]["name"] in page for metric in scaler["metrics"])


def test_a_roll_in_production_needs_no_machine_more_than_there_are_gateways() -> None:
    """Where all machines have one, the one that comes first would have no place, and the roll would never get on."""
    gateway = workloads("overlays/production")["gateway"]["spec"]
    assert gateway["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    terms = gateway["template"]["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term["matchLabelKeys"] for term in terms] == [["pod-template-hash"]]


@each_place
def test_every_secret_is_documented_and_none_is_committed(place: str) -> None:
    page = (K8S / "README.md").read_text()
    assert not of_kind(place, "Secret")
    for role in ROLES:
        assert secret_keys(place, role), "keys and tokens come from Secrets"
        for key in secret_keys(place, role).values():
            assert f"={key}" in page or f"{key}=" in page, key
        for volume in pod(place, role)["volumes"]:
            assert volume.get("secret", {}).get("secretName", "") in page
    hidden = {f"HOLDFAST_{key.replace('.', '_').upper()}" for key in settings.HIDDEN_KEYS}
    assert hidden <= secret_keys(place, "router").keys()
    assert not hidden & settings_of(place, "router").keys()
