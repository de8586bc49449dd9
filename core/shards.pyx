"""Shards: the face for the control threads, and for tests."""

from libc.stdint cimport uint32_t

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
