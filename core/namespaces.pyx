"""Namespaces: the table is filled from what the operator said, and read by tests."""

from libc.string cimport memcpy, memset

from core import namespace_spec

assert sizeof(Namespace) == 64


cdef object namespaces_fill(Namespaces *table, object specs):
    """Fill the table from core.namespace_spec.NamespaceSpec values.

    Raises:
        ValueError: too many of them, a name twice, or a value that is none of its options.
    """
    cdef Namespace *entry
    cdef bytes name
    seen = set()
    memset(table, 0, sizeof(Namespaces))
    for spec in specs:
        name = spec.name.encode()
        if table.count == NAMESPACES_MAX:
            raise ValueError(f"there may be {NAMESPACES_MAX} namespaces at most")
        if not 0 < len(name) <= NAMESPACE_BYTES_MAX or b":" in name:
            raise ValueError(f"a namespace has 1 to {NAMESPACE_BYTES_MAX} bytes and no colon: {spec.name!r}")
        if name in seen:
            raise ValueError(f"the namespace {spec.name} is there twice")
        seen.add(name)
        entry = &table.entries[table.count]
        memcpy(entry.name, <const char *> name, len(name))
        entry.name_size = <uint8_t> len(name)
        entry.domain = namespace_spec.DOMAINS.index(spec.domain) + 1
        table.session_count += entry.domain == DOMAIN_USER
        entry.ack = namespace_spec.ACKS.index(spec.ack)
        entry.publish = namespace_spec.PUBLISHERS.index(spec.publish)
        entry.join = namespace_spec.JOINERS.index(spec.join)
        entry.slow_consumer = namespace_spec.SLOW_CONSUMERS.index(spec.slow_consumer)
        entry.new_device = namespace_spec.NEW_DEVICES.index(spec.new_device)
        entry.history_messages = spec.history_messages
        entry.history_bytes = spec.history_bytes
        entry.history_age_ms = <uint64_t> spec.history_age_s * 1000
        entry.payload_bytes_max = spec.payload_bytes_max
        entry.presence = spec.presence
        entry.events = spec.events
        table.count += 1


cdef class NamespaceTable:
    """A table, for tests."""

    cdef Namespaces table

    def __init__(self, specs):
        namespaces_fill(&self.table, specs)

    def find(self, bytes channel):
        """What the channel's namespace says, as a dict, or None."""
        cdef const Namespace *found = namespace_of(&self.table, channel, len(channel))
        if found == NULL:
            return None
        return {
            "name": found.name[:found.name_size].decode(),
            "domain": namespace_spec.DOMAINS[found.domain - 1],
            "ack": namespace_spec.ACKS[found.ack],
            "publish": namespace_spec.PUBLISHERS[found.publish],
            "join": namespace_spec.JOINERS[found.join],
            "slow_consumer": namespace_spec.SLOW_CONSUMERS[found.slow_consumer],
            "new_device": namespace_spec.NEW_DEVICES[found.new_device],
            "history_messages": found.history_messages,
            "history_bytes": found.history_bytes,
            "history_age_s": found.history_age_ms // 1000,
            "payload_bytes_max": found.payload_bytes_max,
            "presence": bool(found.presence),
            "events": bool(found.events),
        }
