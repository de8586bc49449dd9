"""Where each router of a node has its embedded log, and that nobody changes how many there are on one that exists.

A channel is in the log of the router that leads its shard. With another number of routers other routers would lead it,
and not find what is in its log.
"""

import re
from pathlib import Path

from router.log.port import LogBroken

_SHARE = re.compile(r"router-\d+-of-(\d+)")
_LONE = re.compile(r"segment-\d+\.log|state\.sqlite")


def share(root: Path, router: int, routers: int) -> Path:
    """The folder of router number `router` of so many: the root itself for one that is alone.

    Raises:
        LogBroken: the root holds the log of another number of routers.

    """
    was = routers_of(root)
    if was not in (0, routers):
        raise LogBroken(
            f"{root} holds the log of {was} router{'s' * (was > 1)}, and node.routers is {routers}: set it back to"
            f" {was}, or give log.directory another folder, which begins a new log"
        )
    return root if routers == 1 else root / f"router-{router}-of-{routers}"


def routers_of(root: Path) -> int:
    """Of how many routers a folder holds the log; 0: it holds none."""
    try:
        names = sorted(path.name for path in root.iterdir())
    except OSError:  # it is not there yet, or whoever opens it says what is wrong with it
        return 0
    shares = [int(match[1]) for match in map(_SHARE.fullmatch, names) if match]
    if shares:
        return shares[0]
    return 1 if any(map(_LONE.fullmatch, names)) else 0
