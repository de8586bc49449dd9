"""Who is told what: the configuration by Alertmanager's own judgement, receivers by route, and what is left unsaid."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.places import ALERTMANAGER, alerts, call

CONFIG: dict[str, Any] = yaml.safe_load(ALERTMANAGER.read_text())


def labels_of(alert: str, instance: str = "n1") -> dict[str, str]:
    return {"alertname": alert, "job": "holdfast", "instance": instance, **alerts()[alert]["labels"]}


def test_alertmanager_accepts_the_configuration() -> None:
    done = call("amtool", "check-config", ALERTMANAGER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", sorted(alerts()))
def test_critical_alerts_page_and_warnings_go_to_the_chat(alert: str) -> None:
    labels = [f"{name}={value}" for name, value in labels_of(alert).items()]
    done = call("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", *labels)
    expected = "page" if alerts()[alert]["labels"]["severity"] == "critical" else "chat"
    assert (done.returncode, done.stdout.split()) == (0, [expected])


def test_what_has_no_severity_is_not_lost() -> None:
    done = call("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", "alertname=Other")
    assert done.stdout.split() == ["chat"]


def test_both_receivers_reach_both_chats_and_only_the_page_wakes_somebody() -> None:
    doors = {
        receiver["name"]: [Path(hook["url"]).name for hook in receiver["webhook_configs"]]
        for receiver in CONFIG["receivers"]
    }
    assert doors == {"chat": ["wecom", "dingtalk"], "page": ["wecom", "dingtalk", "sms", "phone"]}


def test_no_secret_stands_in_the_file() -> None:
    for receiver in CONFIG["receivers"]:
        for hook in receiver["webhook_configs"]:
            assert hook["http_config"]["authorization"].keys() == {"credentials_file"}


def test_warnings_sleep_at_night_and_critical_alerts_do_not() -> None:
    routes = CONFIG["route"]["routes"]
    muted = {tuple(route["matchers"]): route.get("mute_time_intervals", []) for route in routes}
    assert muted[('severity="critical"',)] == []
    assert all("night" in muted[key] for key in muted if 'severity="warning"' in key)
    defined = {interval["name"] for interval in CONFIG["time_intervals"]}
    assert {name for names in muted.values() for name in names} <= defined
