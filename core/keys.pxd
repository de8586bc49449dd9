# Keys: idempotency keys of the last minutes, with the position that the first PUBLISH under each got.
#
# A key is kept as 128 bits of keyed hash over channel, sender and key, so that its size does not matter and no other
# sender's key can meet it. All keys live equally long, so the oldest is always the next to go: a ring. Invariant: every
# entry from `oldest` to `next` is in the index.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.hash cimport HashKey, Index
from core.ledger cimport Ledger

cdef enum:
    # Keys are kept by the monotonic clock, so that no step of the wall clock makes their window shorter or longer. What
    # comes out of the log may be older than the machine's start: this is added, so that no time is below 0.
    KEYS_BASE_MS = 0x10000000000

ctypedef struct Key:            # 40 bytes
    uint64_t high               # hashes
    uint64_t low
    uint64_t epoch              # of the first message under this key
    uint64_t offset
    uint64_t kept_ms            # see KEYS_BASE_MS

ctypedef struct Keys:
    Key *ring                   # owned
    uint32_t capacity           # a power of two
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
cdef void keys_expire(Keys *keys, uint64_t now_ms) noexcept nogil
cdef void keys_free(Keys *keys) noexcept nogil
