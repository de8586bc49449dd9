"""What a gateway finds about regions in the directory: which there are, and where clients go from an evacuated one."""

from collections.abc import Mapping
from typing import Any

from gateway.cluster_config import GATEWAY_UNIT, targets_at
from gateway.cluster_view import ClusterView
from gateway.evacuation import Away
from router.loads import Load
from router.shards.view import View


def away_from(view: View, region: str, workers: int) -> Away | None:
    """What a node's workers are to do about their clients; None: keep them.

    They are kept as well while no gateway of another region lives that could take them.

    Args:
        view: the directory.
        region: of the node.
        workers: that share its part of the pace.

    """
    if not view.ready() or not view.evacuated(region):
        return None
    gateways = [seen.record for name, seen in sorted(view.nodes.items()) if name.endswith(GATEWAY_UNIT) and seen.record]
    others = [one for one in gateways if one.region not in ("", region) and not view.evacuated(one.region)]
    if not others:
        return None
    targets = sorted({targets_at(one.address) for one in others} - {("", "")})
    record = view.regions.get(region).record
    mine = sum(one.region == region for one in gateways)
    pace = record.pace / max(1, mine) / max(1, workers) if record is not None else 0.0
    return Away(tuple(targets), pace)


def as_json(cluster: ClusterView, loads: Mapping[str, Load]) -> list[dict[str, Any]]:
    """All regions: those where nodes live, and those that are evacuated; `loads`: what routers told, by name."""
    view, leaders, wanted = cluster.view, cluster.leaders(), cluster.wanted()
    nodes = {name: seen.record for name, seen in view.nodes.items() if seen.record is not None}
    evacuated = {name: seen.record for name, seen in view.regions.items() if seen.record is not None}
    found = []
    for name, is_evacuated in evacuated_of(view).items():
        routers = [node for node, one in nodes.items() if one.region == name and one.weight]
        order = evacuated.get(name)
        found.append(
            {
                "name": name,
                "routers": len(routers),
                "gateways": sum(one.region == name and not one.weight for one in nodes.values()),
                "leads": sum(leader in routers for leader in leaders if leader is not None),
                "wanted": sum(router in routers for router in wanted if router is not None),
                "evacuated": is_evacuated,
                "by": order.by if order is not None else None,
                "since_ms": order.since_ms if order is not None else None,
                "pace": order.pace if order is not None else None,
                **_replication(loads, name, routers),
            }
        )
    return found


def _replication(loads: Mapping[str, Load], region: str, routers: list[str]) -> dict[str, Any]:
    """How far a region is with what others lead, as routers tell; None: nobody does.

    `lag_entries` is of all shards together, `lag_seconds` that of the one which is most behind, and `breakers_open`
    says how many of `breakers` other routers take the region for away.
    """
    seen = [load.others[region] for load in loads.values() if region in load.others]
    lags = [lag for other in seen for lag in other.lags.values()]
    own = [other for name in routers if name in loads for other in loads[name].others.values()]
    return {
        "follows": sum(other.follows for other in own),
        "behind": sum(other.behind for other in own),
        "lag_entries": sum(entries for entries, _ in lags) if seen else None,
        "lag_seconds": max((seconds for _, seconds in lags), default=0.0) if seen else None,
        "breakers_open": sum(other.away for other in seen),
        "breakers": len(seen),
    }


def evacuated_of(view: View) -> dict[str, bool]:
    """All regions by name, and whether each is evacuated; what cannot be read about one counts as that."""
    there = {seen.record.region for _, seen in view.nodes.items() if seen.record is not None}
    return {name: view.evacuated(name) for name in sorted({*there, *view.regions.revisions().values()} - {""})}
