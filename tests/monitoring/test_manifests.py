"""The files fit together: rules and what a node exports, the operator's copy and the plain files, and the schemas."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.conftest import Node, wait_until
from tests.monitoring.places import MONITORING, ROOT, alerts, call, rules
from tests.process.clients import open_session, run
from tools import prometheus_rule

KUBERNETES = "1.33"


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def names(text: str) -> set[str]:
    """What /metrics offers, also those families that have no sample yet."""
    found = {sample.split("{")[0].split(" ")[0] for sample in text.splitlines() if not sample.startswith("#")}
    return found | set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))


def test_every_metric_in_the_rules_is_one_that_a_node_exports(holdfast: Callable[..., Node]) -> None:
    expressions = " ".join(rule["expr"] for rule in rules())
    used = set(re.findall(r"\bholdfast_\w+", expressions))
    exported = names(holdfast("--workers", "1").get("/metrics")[1])
    assert used <= exported
    told = set(re.findall(r"\bholdfast_\w+", (ROOT / "docs" / "alerts.md").read_text()))
    assert told <= exported
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"\bholdfast:\w+:\w+", expressions)) <= recorded


def test_labels_that_the_rules_ask_for_are_there(holdfast: Callable[..., Node]) -> None:
    """A matcher that nothing has makes an alert that never fires."""
    samples = holdfast("--workers", "1").metrics()
    for rule in rules():
        for name, inside in re.findall(r"\b(holdfast_\w+)\{([^}]*)\}", rule["expr"]):
            for label, operator, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', inside):
                pattern = re.compile(value if operator == "=~" else re.escape(value))
                assert any(pattern.fullmatch(labels.get(label, "")) for labels, _ in samples[name]), (name, label)
                for one in value.split("|"):
                    assert any(re.fullmatch(one, labels[label]) for labels, _ in samples[name]), (name, label, one)


def test_a_node_without_connections_holds_nothing_that_the_rule_on_the_ledger_counts(
    holdfast: Callable[..., Node],
) -> None:
    node = holdfast("--workers", "1")
    (kinds,) = re.findall(r'kind=~"([^"]*)"', alerts()["HoldfastLedgerNotClosing"]["expr"])

    async def sessions() -> None:
        opened = [await open_session(node, transport) for transport in ("tcp", "text")]
        assert sum(node.live(kind) for kind in kinds.split("|")) > 0
        for session in opened:
            await session.close()

    run(sessions())
    wait_until(lambda: node.metric("holdfast_open_connections") == 0, "the clients are gone")
    wait_until(lambda: not any(node.live(kind) for kind in kinds.split("|")), lambda: f"{node.ledger()}")


def test_the_operators_copy_of_the_rules_is_the_plain_files() -> None:
    assert prometheus_rule.RESOURCE.read_text() == prometheus_rule.assembled(), "run: python tools/prometheus_rule.py"
    resource = loaded(prometheus_rule.RESOURCE)
    assert (resource["apiVersion"], resource["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    groups = [group for path in sorted((MONITORING / "rules").glob("*.yaml")) for group in loaded(path)["groups"]]
    assert resource["spec"] == {"groups": groups}


def test_prometheus_accepts_its_configuration() -> None:
    done = call("promtool", "check", "config", MONITORING / "prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_relays_manifests_are_kubernetes() -> None:
    """The misspelt and the mistyped are refused."""
    for path in sorted((MONITORING / "relay").glob("*.yaml")):
        kubernetes_validate.validate(loaded(path), KUBERNETES, strict=True)
    broken = loaded(MONITORING / "relay" / "deployment.yaml")
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_what_kustomize_gathers_exists_and_fits_together() -> None:
    gathered = loaded(MONITORING / "kustomization.yaml")
    generated = {made["name"]: made["files"] for made in gathered["configMapGenerator"] + gathered["secretGenerator"]}
    for file in [*gathered["resources"], *(file for files in generated.values() for file in files)]:
        assert (MONITORING / file).is_file(), file
    deployment, service = (loaded(MONITORING / "relay" / f"{name}.yaml") for name in ("deployment", "service"))
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert generated[volumes["program"]["configMap"]["name"]] == ["relay/relay.py"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["command"] == ["python3", f"{mounts['program']}/relay.py", "--secrets", mounts["secrets"]]
    url = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/"
    hooks = re.findall(r"url: (\S+)", (MONITORING / "alertmanager.yaml").read_text())
    assert hooks
    assert all(hook.startswith(url) for hook in hooks)


def test_the_pod_monitor_gives_the_job_that_the_rules_ask_for() -> None:
    monitor = loaded(MONITORING / "podmonitor.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert (
        wanted[monitor["spec"]["jobLabel"]] == loaded(MONITORING / "prometheus.yaml")["scrape_configs"][0]["job_name"]
    )
    assert [end["path"] for end in monitor["spec"]["podMetricsEndpoints"]] == ["/metrics"]


def test_every_alert_has_a_section_that_its_runbook_link_leads_to() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text()
    sections = re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert sorted(name for name, _ in sections) == sorted(alerts())
    for name, text in sections:
        assert alerts()[name]["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"
        assert all(f"**{part}**" in text for part in ("Means", "Look at", "Do")), name
