"""What an operator says of a namespace: one frozen value that workers and routers are told alike."""

from typing import Annotated

import msgspec
from msgspec import Meta

NAMESPACES_MAX = 64
NAME_BYTES_MAX = 31
NAME_PATTERN = "^[a-z][a-z0-9_-]{0,30}$"
DOMAINS = ("session", "group", "global")
ACKS = ("sequenced", "logged", "replicated")
PUBLISHERS = ("members", "anyone", "server")
JOINERS = ("anyone", "token", "server")
SLOW_CONSUMERS = ("disconnect", "drop_oldest", "conflate")
NEW_DEVICES = ("last_ack", "start", "live")
LOGINS = ("many", "one_per_device_class", "one")
DAY_S = 86_400
# No namespace keeps more; of one that is not configured (any more) so much stays.
HISTORY_MESSAGES_MAX = 1_000_000
HISTORY_BYTES_MAX = 1_073_741_824
HISTORY_AGE_S_MAX = 366 * DAY_S


def _one_of(words: tuple[str, ...], description: str) -> Meta:
    return Meta(pattern=f"^({'|'.join(words)})$", description=description)


class NamespaceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One namespace. Each option is checked by its type; what does not fit together, `gateway.namespaces` finds."""

    name: Annotated[
        str,
        Meta(
            pattern=NAME_PATTERN,
            description="What stands before the colon of a channel: a small letter, then up to 30 of small letters,"
            " digits, - and _.",
        ),
    ]
    domain: Annotated[
        str,
        _one_of(
            DOMAINS,
            "Who receives: `session`, the sessions of the user whose id follows the colon; `group`, those that joined;"
            " `global`, all.",
        ),
    ]
    ack: Annotated[
        str,
        _one_of(
            ACKS,
            "What an answer to PUBLISH promises: `sequenced`, the message has its position and is on its way;"
            " `logged`, it is in the log, and no process's end takes it back; `replicated`, it is in the logs of two"
            " regions (`log.regions`), and no region's end takes it back.",
        ),
    ] = "logged"
    history_messages: Annotated[
        int,
        Meta(
            ge=0, le=HISTORY_MESSAGES_MAX, description="Messages kept of one channel; the older ones go first. 0: none."
        ),
    ] = 1_000
    history_bytes: Annotated[
        int, Meta(ge=0, le=HISTORY_BYTES_MAX, description="Bytes of messages kept of one channel, envelopes included.")
    ] = 1_048_576
    history_age_s: Annotated[
        int,
        Meta(
            ge=1,
            le=HISTORY_AGE_S_MAX,
            description="Seconds for which a message is kept: so long somebody may be away and miss nothing.",
        ),
    ] = 7 * DAY_S
    payload_bytes_max: Annotated[
        int,
        Meta(ge=0, le=16_777_216, description="Bytes of the data of one PUBLISH. 0: what gateway.max_frame allows."),
    ] = 0
    publish: Annotated[
        str,
        _one_of(
            PUBLISHERS,
            "Who may publish: `members`, who joined the channel or whose own it is; `anyone` with a session; `server`,"
            " nobody but the admin API.",
        ),
    ] = "members"
    join: Annotated[
        str,
        _one_of(
            JOINERS,
            "Who may join a group: `anyone`; `token`, whose token names the channel (anybody in development mode);"
            " `server`, no client.",
        ),
    ] = "anyone"
    slow_consumer: Annotated[
        str,
        _one_of(
            SLOW_CONSUMERS,
            "What happens to a member that takes too little: `disconnect`, FIN `slow_consumer` when its queue is full;"
            " `drop_oldest`, the oldest of what waits is left out then; `conflate`, it gets the newest message alone as"
            " soon as it can take one. EVENT `gap` tells what was left out.",
        ),
    ] = "disconnect"
    presence: Annotated[bool, Meta(description="Whether PRESENCE tells who is there.")] = True
    events: Annotated[bool, Meta(description="Whether members hear who `joined` and who `left`.")] = False
    new_device: Annotated[
        str,
        _one_of(
            NEW_DEVICES,
            "Where a new session starts in a channel of its user: `last_ack`, after the last message that any of the"
            " user's devices acknowledged; `start`, with the oldest that is kept; `live`, with the next one.",
        ),
    ] = "last_ack"
    login: Annotated[
        str,
        _one_of(
            LOGINS,
            "How many sessions a user may have at once: `many`; `one_per_device_class`, one a class of device (`dev` of"
            " the token); `one`. A new one ends the former, whose client hears FIN `kicked` with where that was.",
        ),
    ] = "many"


BUILT_IN = (
    # A direct message waits a month for a user who is away; anyone may write to anyone.
    NamespaceSpec(name="user", domain="session", publish="anyone", history_age_s=30 * DAY_S),
    NamespaceSpec(name="group", domain="group"),
    # An announcement to all comes from the team itself, and who sees it is no secret to be asked for.
    NamespaceSpec(name="global", domain="global", publish="server", history_messages=100, presence=False),
)
