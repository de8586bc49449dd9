"""What a gateway finds about regions in the directory: which there are, and where clients go from an evacuated one."""

from typing import Any

from gateway.cluster_config import GATEWAY_UNIT, targets_at
from gateway.cluster_view import ClusterView
from gateway.evacuation import Away
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


def as_json(cluster: ClusterView) -> list[dict[str, Any]]:
    """All regions: those where nodes live, and those that are evacuated."""
    view, leaders, wanted = cluster.view, cluster.leaders(), cluster.wanted()
    nodes = {name: seen.record for name, seen in view.nodes.items() if seen.record is not None}
    evacuated = {name: seen.record for name, seen in view.regions.items() if seen.record is not None}
    names = ({one.region for one in nodes.values()} | evacuated.keys() | view_names(view)) - {""}
    found = []
    for name in sorted(names):
        routers = [node for node, one in nodes.items() if one.region == name and one.weight]
        order = evacuated.get(name)
        found.append(
            {
                "name": name,
                "routers": len(routers),
                "gateways": sum(one.region == name and not one.weight for one in nodes.values()),
                "leads": sum(leader in routers for leader in leaders if leader is not None),
                "wanted": sum(router in routers for router in wanted if router is not None),
                "evacuated": view.evacuated(name),
                "by": order.by if order is not None else None,
                "since_ms": order.since_ms if order is not None else None,
                "pace": order.pace if order is not None else None,
            }
        )
    return found


def view_names(view: View) -> set[str]:
    """The regions about which something stands in the directory that cannot be read: they count as evacuated."""
    return set(view.regions.revisions().values())
