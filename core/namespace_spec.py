"""What an operator says of a namespace: one frozen value that workers and routers are told alike."""

import msgspec

NAMESPACES_MAX = 64
NAME_BYTES_MAX = 31
DOMAINS = ("session", "group", "global")
ACKS = ("sequenced", "logged")
PUBLISHERS = ("members", "anyone", "server")
JOINERS = ("anyone", "token", "server")
SLOW_CONSUMERS = ("disconnect", "drop_oldest", "conflate")
NEW_DEVICES = ("last_ack", "start", "live")
DAY_S = 86_400


class NamespaceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One namespace. The values were checked by whoever read the configuration."""

    name: str
    """What stands before the colon of a channel, at most 31 bytes."""
    domain: str
    """Who receives: `session`, the sessions of one user; `group`, those that joined; `global`, all."""
    ack: str = "logged"
    """What an answer to PUBLISH promises: `sequenced`, ordered and on its way; `logged`, in the log."""
    history_messages: int = 1_000
    """Messages kept per channel; 0 keeps none."""
    history_bytes: int = 1_048_576
    """Bytes of MESSAGE frames kept per channel; the older ones go first."""
    history_age_s: int = 7 * DAY_S
    """Seconds for which a message is kept."""
    payload_bytes_max: int = 0
    """Bytes of the data of a PUBLISH; 0: what max_frame allows."""
    publish: str = "members"
    """Who may publish: `members`, `anyone` with a session, or the `server`'s admin API alone."""
    join: str = "anyone"
    """Who may join a group: `anyone`, whose `token` names the channel, or nobody (the `server` joins for them)."""
    slow_consumer: str = "disconnect"
    """What happens when a member's queue is full: `disconnect`, `drop_oldest` with EVENT gap, or `conflate`."""
    presence: bool = True
    """Whether PRESENCE is served."""
    events: bool = False
    """Whether members hear `joined` and `left`."""
    new_device: str = "last_ack"
    """Where a session without positions starts in its user's channel: `last_ack`, `start` or `live`."""


BUILT_IN = (
    NamespaceSpec(name="user", domain="session", publish="anyone", history_age_s=30 * DAY_S),
    NamespaceSpec(name="group", domain="group"),
    NamespaceSpec(name="global", domain="global", publish="server", history_messages=100, presence=False),
)
