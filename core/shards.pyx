"""Shards: the face for the control threads, and for tests."""

from libc.stdint cimport uint32_t

from core.namespaces cimport Namespaces, namespaces_fill

COUNT_MAX = SHARDS_MAX
OF_GLOBALS = SHARD_OF_GLOBALS


def byte_of(bytes name):
    """0 to 255: the low bits are the shard of a channel that is not global, and the first byte of a session's id is
    that of its user's own channel."""
    return shard_byte(name, <uint32_t> len(name))


def check_count(int count):
    """The count, if a cluster may have so many shards.

    Raises:
        ValueError: it is no power of two between 1 and 256.
    """
    if not 1 <= count <= SHARDS_MAX or count & (count - 1):
        raise ValueError(f"{count} shards: a power of two between 1 and {SHARDS_MAX}")
    return count


cdef class Shards:
    """The shards of a cluster, as its routers and workers count them.

    Args:
        namespaces: what channels may be of, as core.namespace_spec.NamespaceSpec values.
        count: how many there are.

    Raises:
        ValueError: there cannot be so many.
    """

    cdef Namespaces table
    cdef uint32_t count

    def __init__(self, namespaces, int count=SHARDS_MAX):
        namespaces_fill(&self.table, namespaces)
        self.count = check_count(count)

    def of_channel(self, bytes name):
        """The shard of a channel."""
        return shard_of_channel(&self.table, name, <uint32_t> len(name), self.count)
