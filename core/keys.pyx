"""Keys: find, keep and forget idempotency keys."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from core.hash cimport hash_bytes, index_find, index_free, index_put, index_remove
from core.ledger cimport KIND_KEY, Stats, ledger_acquire, ledger_leaks, ledger_release
from core.sites cimport HERE


cdef int key_name(Keys *keys, const uint8_t *channel, uint32_t channel_size, const uint8_t *sender,
                  uint32_t sender_size, const uint8_t *key, uint32_t key_size, KeyName *name) noexcept nogil:
    """128 bits that stand for (channel, sender, key); -1: a part is longer than the protocol allows."""
    cdef uint8_t text[640]
    if channel_size > 255 or sender_size > 255 or key_size > 64:
        return -1
    text[0] = <uint8_t> channel_size        # the sizes in front keep the parts apart
    text[1] = <uint8_t> sender_size
    memcpy(text + 2, channel, channel_size)
    memcpy(text + 2 + channel_size, sender, sender_size)
    memcpy(text + 2 + channel_size + sender_size, key, key_size)
    name.high = hash_bytes(&keys.first, text, 2 + channel_size + sender_size + key_size)
    name.low = hash_bytes(&keys.second, text, 2 + channel_size + sender_size + key_size)
    return 0


cdef Key *key_find(Keys *keys, const KeyName *name, uint64_t now_ms) noexcept nogil:
    """The first message under this key inside the window, or NULL."""
    cdef uint32_t probe = 0
    cdef uint32_t found
    cdef Key *key
    keys_expire(keys, now_ms)
    found = index_find(&keys.index, name.high, &probe)
    while found:
        key = &keys.ring[found - 1]
        if key.high == name.high and key.low == name.low:
            return key
        found = index_find(&keys.index, name.high, &probe)
    return NULL


cdef void _forget_oldest(Keys *keys) noexcept nogil:
    cdef uint32_t place = keys.oldest & (keys.capacity - 1)
    index_remove(&keys.index, keys.ring[place].high, place)
    if not ledger_leaks(keys.ledger, KIND_KEY):
        ledger_release(keys.ledger, KIND_KEY, keys.named + keys.oldest)
    keys.oldest += 1


cdef void keys_expire(Keys *keys, uint64_t now_ms) noexcept nogil:
    """Forget the keys whose window is over."""
    while keys.oldest != keys.next \
            and keys.ring[keys.oldest & (keys.capacity - 1)].kept_ms + keys.window_ms < now_ms:
        _forget_oldest(keys)


cdef int _grow(Keys *keys) noexcept nogil:
    """Double the ring; places change, so the index is built again. -1: out of memory, the old one stays."""
    cdef uint32_t capacity = keys.capacity * 2 if keys.capacity else 256
    cdef Key *ring = <Key *> malloc(capacity * sizeof(Key))
    cdef uint32_t at = keys.oldest
    if ring == NULL:
        return -1
    index_free(&keys.index)
    while at != keys.next:
        ring[at & (capacity - 1)] = keys.ring[at & (keys.capacity - 1)]
        if index_put(&keys.index, ring[at & (capacity - 1)].high, at & (capacity - 1)) < 0:
            break
        at += 1
    while keys.next != at:          # without memory for the index the newest are forgotten
        keys.next -= 1
        ledger_release(keys.ledger, KIND_KEY, keys.named + keys.next)
    free(keys.ring)
    keys.ring = ring
    keys.capacity = capacity
    return 0


cdef int key_keep(Keys *keys, const KeyName *name, uint64_t epoch, uint64_t offset, uint64_t now_ms) noexcept nogil:
    """Remember a key that `key_find` did not find; -1: out of memory."""
    cdef uint32_t place
    if keys.next - keys.oldest >= keys.keys_max:
        _forget_oldest(keys)
    if keys.next - keys.oldest >= keys.capacity and _grow(keys) < 0:
        return -1
    place = keys.next & (keys.capacity - 1)
    if index_put(&keys.index, name.high, place) < 0:
        return -1
    keys.ring[place].high = name.high
    keys.ring[place].low = name.low
    keys.ring[place].epoch = epoch
    keys.ring[place].offset = offset
    keys.ring[place].kept_ms = now_ms
    ledger_acquire(keys.ledger, KIND_KEY, keys.named + keys.next, HERE)
    keys.next += 1
    return 0


cdef void keys_free(Keys *keys) noexcept nogil:
    while keys.oldest != keys.next:
        _forget_oldest(keys)
    index_free(&keys.index)
    free(keys.ring)
    keys.ring = NULL
    keys.capacity = 0


cdef class KeyTable:
    """Idempotency keys, for tests; time is an argument."""

    cdef Keys keys
    cdef Stats stats

    def __init__(self, Stats stats, *, int keys_max=1 << 20, unsigned long long window_ms=300000):
        self.stats = stats
        self.keys.ledger = &stats.ledger
        self.keys.keys_max = keys_max
        self.keys.window_ms = window_ms
        self.keys.second.k0 = 1

    def __dealloc__(self):
        keys_free(&self.keys)

    def publish(self, bytes channel, bytes sender, bytes key, position, unsigned long long now_ms):
        """The first position under the key: the one given if the key is new, kept from now on."""
        cdef KeyName name
        cdef Key *found
        if key_name(&self.keys, channel, len(channel), sender, len(sender), key, len(key), &name) < 0:
            raise ValueError("a part is too long")
        found = key_find(&self.keys, &name, now_ms)
        if found != NULL:
            return found.epoch, found.offset
        if key_keep(&self.keys, &name, position[0], position[1], now_ms) < 0:
            raise MemoryError
        return position

    def __len__(self):
        return self.keys.next - self.keys.oldest
