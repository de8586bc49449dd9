# Namespaces: what the part of a channel's name before its colon decides.
#
# The table is filled before the data plane starts and never changes: a lookup compares lengths and bytes of at most 64
# names, the built-in ones first. Invariant: names are unique, and none holds a colon.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp

cdef enum:
    NAMESPACES_MAX = 64
    NAMESPACE_BYTES_MAX = 31
    GLOBALS_MAX = 128           # global channels at once: each HELLO is told, and stores, where all of them stand
    USER_PREFIX_BYTES = 5       # `user:`, which stands before the id in the name of a user's own channel

cdef enum Domain:
    DOMAIN_NONE
    DOMAIN_USER
    DOMAIN_GROUP
    DOMAIN_GLOBAL

cdef enum AckLevel:
    ACK_SEQUENCED               # answered and delivered at once
    ACK_LOGGED                  # answered and delivered when the log has it
    ACK_REPLICATED              # delivered when the log has it, answered when another region's has it too

cdef enum Publisher:
    PUBLISH_MEMBERS
    PUBLISH_ANYONE
    PUBLISH_SERVER

cdef enum Joiner:
    JOIN_ANYONE
    JOIN_TOKEN
    JOIN_SERVER

cdef enum SlowConsumer:
    SLOW_DISCONNECT
    SLOW_DROP_OLDEST
    SLOW_CONFLATE

cdef enum NewDevice:
    NEW_LAST_ACK
    NEW_START
    NEW_LIVE

ctypedef struct Namespace:      # 64 bytes
    uint64_t history_age_ms
    uint32_t history_messages
    uint32_t history_bytes
    uint32_t payload_bytes_max  # 0: what max_frame allows
    uint8_t name_size
    uint8_t domain              # Domain, never DOMAIN_NONE
    uint8_t ack                 # AckLevel
    uint8_t publish             # Publisher
    uint8_t join                # Joiner
    uint8_t slow_consumer       # SlowConsumer
    uint8_t new_device          # NewDevice
    uint8_t presence
    uint8_t events
    char name[31]

ctypedef struct Namespaces:
    uint32_t count
    uint32_t session_count      # of them, those of domain session: every session is in one channel of each
    Namespace entries[NAMESPACES_MAX]


cdef inline const Namespace *namespace_of(const Namespaces *table, const char *name, uint32_t size) noexcept nogil:
    """The namespace of a channel's name, or NULL: not known, no colon, or nothing behind it. Valid for ever."""
    cdef const char *colon = <const char *> memchr(name, c':', size if size < 32 else 32)
    cdef uint32_t prefix
    cdef uint32_t at
    if colon == NULL:
        return NULL
    prefix = <uint32_t> (colon - name)
    if prefix + 1 == size:
        return NULL
    for at in range(table.count):
        if table.entries[at].name_size == prefix and memcmp(table.entries[at].name, name, prefix) == 0:
            return &table.entries[at]
    return NULL


cdef inline int domain_in(const Namespaces *table, const char *name, uint32_t size) noexcept nogil:
    """The domain of a channel's name, DOMAIN_NONE when it has no namespace."""
    cdef const Namespace *namespace = namespace_of(table, name, size)
    return DOMAIN_NONE if namespace == NULL else namespace.domain


cdef object namespaces_fill(Namespaces *table, object specs)
