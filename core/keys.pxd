# Keys: idempotency keys of the last minutes, with the position that the first PUBLISH under each got.
#
# A key is kept as 128 bits of keyed hash over channel, sender and key, so that its size does not matter and no other
# sender's key can meet it. All keys live equally long, so the oldest is always the next to go: a ring. It is made of
# blocks, which come and go with what is in them: a ring that grows as a whole would copy 40 MB at a million keys, and
# hold a turn up for that. What is over goes a few at a time, and does not count meanwhile. Invariant: every entry from
# `oldest` to `next` is in the index, under the low bits of its number.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.hash cimport HashKey, Index
from core.ledger cimport Ledger

cdef enum:
    # Keys are kept by the monotonic clock, so that no step of the wall clock makes their window shorter or longer. What
    # comes out of the log may be older than the machine's start: this is added, so that no time is below 0.
    KEYS_BASE_MS = 0x10000000000
    KEYS_BLOCK_BITS = 12        # 160 KiB a block
    KEYS_STEP = 4               # forgotten at most with each that is kept or looked for
    KEYS_SWEPT = 4096           # and by a sweep: half a millisecond

ctypedef struct Key:            # 40 bytes
    uint64_t high               # hashes
    uint64_t low
    uint64_t epoch              # of the first message under this key
    uint64_t offset
    uint64_t kept_ms            # see KEYS_BASE_MS

ctypedef struct Keys:
    Key **blocks                # owned, as are those that are there: each has 1 << KEYS_BLOCK_BITS entries
    uint32_t capacity           # entries of all blocks, a power of two; 0 before the first key
    uint32_t oldest             # counts up; the low bits are the place
    uint32_t next
    uint32_t keys_max           # beyond it the oldest goes before its time
    uint64_t named              # added to a key's number in the ledger: tells two tables of one ledger apart
    uint64_t window_ms
    Index index
    HashKey first
    HashKey second
    Ledger *ledger              # borrowed

ctypedef struct KeyName:
    uint64_t high
    uint64_t low


cdef inline uint64_t keys_ms(uint64_t monotonic_ms) noexcept nogil:
    return KEYS_BASE_MS + monotonic_ms


cdef int key_name(Keys *keys, const uint8_t *channel, uint32_t channel_size, const uint8_t *sender,
                  uint32_t sender_size, const uint8_t *key, uint32_t key_size, KeyName *name) noexcept nogil
cdef Key *key_find(Keys *keys, const KeyName *name, uint64_t now_ms) noexcept nogil
cdef int key_keep(Keys *keys, const KeyName *name, uint64_t epoch, uint64_t offset, uint64_t now_ms) noexcept nogil
cdef void keys_expire(Keys *keys, uint64_t now_ms, uint32_t most) noexcept nogil
cdef void keys_free(Keys *keys) noexcept nogil
