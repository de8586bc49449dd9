"""What is said of messages in the log whose namespace is not configured: after a typing error, or a step back.

They are kept, since they were promised: they are there again once their namespace is.
"""

import logging
from collections.abc import Collection

from core.namespace_spec import HISTORY_AGE_S_MAX

DAYS = HISTORY_AGE_S_MAX // 86_400
# Who has more of them than there may be namespaces has another log's keys there.
NAMED_MAX = 8

_log = logging.getLogger("holdfast.log")


def say_unknown(where: str, counts: Collection[tuple[str, int | None]], until: str) -> None:
    """Warn of what is kept and cannot be asked for.

    Args:
        where: the log.
        counts: each namespace, and how many messages of it there are, if that is known.
        until: how long they stay.

    """
    named = [name if count is None else f"{name} ({count} messages)" for name, count in sorted(counts)[:NAMED_MAX]]
    more = f" and {len(counts) - NAMED_MAX} more" if len(counts) > NAMED_MAX else ""
    _log.warning(
        "%s has messages of namespaces that are not configured: %s%s. Nobody can read them, and they stay %s: "
        "configure [namespaces.<name>] as it was, and they are there again; with history_messages = 0 they go for good",
        where,
        ", ".join(named),
        more,
        until,
    )
