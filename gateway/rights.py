"""The channels that a token allows, where it lists any: checked once at HELLO, then held by the data plane.

A pattern is a channel's name, or ends in `*` and stands for all names that begin so. A list that is there is a limit in
every namespace; without one the namespace alone decides, and one with `join = "token"` lets nobody in.
"""

from dataclasses import dataclass

import msgpack

from core.namespace_spec import NamespaceSpec
from core.rights import RIGHTS_MAX

PATTERN_BYTES_MAX = 255


@dataclass(frozen=True)
class Rights:
    """What a session may do; None is "no list"."""

    join: tuple[str, ...] | None = None
    publish: tuple[str, ...] | None = None

    @classmethod
    def of(cls, join: object, publish: object) -> "Rights":
        """From the lists of a token, as they are.

        Raises:
            ValueError: one is no list of patterns, or there is too much of it.

        """
        rights = cls(_patterns("channels", join), _patterns("publish", publish))
        if len(rights.packed()) > RIGHTS_MAX:
            raise ValueError(f"the lists of channels have more than {RIGHTS_MAX} bytes: use patterns that end in *")
        return rights

    @classmethod
    def unpacked(cls, packed: bytes) -> "Rights":
        """From what `packed` gave."""
        lists = msgpack.unpackb(packed) if packed else {}
        return cls(**{verb: tuple(patterns) for verb, patterns in lists.items()})

    def packed(self) -> bytes:
        """For the data plane (core/rights.pxd); empty when there is no list."""
        lists = {verb: patterns for verb, patterns in (("join", self.join), ("publish", self.publish))}
        said = {verb: patterns for verb, patterns in lists.items() if patterns is not None}
        packed: bytes = msgpack.packb(said) if said else b""
        return packed

    def may_join(self, spec: NamespaceSpec, channel: str, *, development: bool) -> bool:
        """Whether a group of the namespace may be joined; the same rule as the data plane's for JOIN."""
        if spec.join == "server":
            return False
        if self.join is None:
            return spec.join == "anyone" or development
        return any(_fits(pattern, channel) for pattern in self.join)


def _fits(pattern: str, channel: str) -> bool:
    return channel.startswith(pattern[:-1]) if pattern.endswith("*") else channel == pattern


def _patterns(claim: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"{claim} must be a list of channels, such as group:lobby or group:team-*")
    for pattern in value:
        if not isinstance(pattern, str) or not 0 < len(pattern.encode(errors="replace")) <= PATTERN_BYTES_MAX:
            raise ValueError(f"{claim} must hold channels, each of 1 to {PATTERN_BYTES_MAX} bytes")
        if "*" in pattern[:-1]:
            raise ValueError(f"{claim}: a * may only stand at the end of a channel, unlike in {pattern!r}")
    return tuple(value)
