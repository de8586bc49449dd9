"""The notes' numbers: each kind its own, so that no note is taken for another."""

from core import notes

FLAGS = {"OPEN_RESUMES", "OPEN_TELLS_UNREAD", "OPEN_WHOLE", "OPEN_IF_ALIVE", "OPEN_DEVICE"}
KINDS = {name: value for name, value in vars(notes).items() if name.isupper() and isinstance(value, int)}
KINDS = {name: value for name, value in KINDS.items() if name not in FLAGS}


def test_every_kind_has_a_number_of_its_own_from_one_on() -> None:
    assert sorted(KINDS.values()) == list(range(1, len(KINDS) + 1))


def test_every_kind_that_the_threads_use_is_there() -> None:
    to_control = {"FRAME", "LINKED", "STOPPED", "LISTED"}
    to_control |= {"DRAIN_SENT", "TAKEN", "SETTLE", "AUDITED"}
    to_control |= {"LOG_BATCH", "LOG_LOAD", "LOG_KEPT", "SESSION_OPEN", "SESSION_STATE", "SESSION_TOLD", "CURSOR"}
    to_control |= {"SESSIONS", "BAN", "BANS", "FOREIGN", "DRAINED", "FORGOTTEN", "CLAIM", "LINK_CLOSED"}
    to_control |= {"ABROAD", "BEGAN"}
    from_control = {"OPEN", "SEND", "FIN", "HISTORY", "PRESENCE", "DRAIN", "STOP", "LIST", "RECLAIM"}
    from_control |= {"DRAIN_STEP", "SETTLED", "AUDIT"}
    from_control |= {"LOG_COMMITTED", "LOG_STATE", "LOG_LOADED", "LOG_SIFT", "SESSION_OPENED", "CURSOR_READ"}
    from_control |= {"SESSIONS_READ", "REFRESH", "BANS_SAY", "SESSIONS_STORED", "TOLD_END"}
    from_control |= {"LEAD", "PAUSE", "SHARD_DRAIN", "FORGET", "HOLD", "LOG_RECOVER", "CLAIMED", "EVICT"}
    from_control |= {"FOLLOW", "FOLLOWED", "REPLICATED"}
    from_control |= {"LINK_OPEN", "LINK_CLOSE"}
    assert set(KINDS) == to_control | from_control
    assert max(KINDS[name] for name in to_control) < min(KINDS[name] for name in from_control)
