"""Keys: find, keep and forget idempotency keys."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from core.hash cimport hash_bytes, index_find, index_free, index_put, index_remove
from core.ledger cimport KIND_KEY, Stats, ledger_acquire, ledger_leaks, ledger_release
from core.pages cimport pages_give, pages_take
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


cdef inline Key *_at(Keys *keys, uint32_t place) noexcept nogil:
    return &keys.blocks[place >> KEYS_BLOCK_BITS][place & ((1 << KEYS_BLOCK_BITS) - 1)]


cdef inline void _block_free(Keys *keys, uint32_t block) noexcept nogil:
    pages_give(keys.blocks[block], sizeof(Key) << KEYS_BLOCK_BITS)
    keys.blocks[block] = NULL


cdef inline bint _is_over(Keys *keys, const Key *key, uint64_t now_ms) noexcept nogil:
    return key.kept_ms + keys.window_ms < now_ms


cdef Key *key_find(Keys *keys, const KeyName *name, uint64_t now_ms) noexcept nogil:
    """The first message under this key inside the window, or NULL."""
    cdef uint32_t probe = 0
    cdef uint32_t found
    cdef Key *key
    keys_expire(keys, now_ms, KEYS_STEP)
    found = index_find(&keys.index, name.high, &probe)
    while found:
        key = _at(keys, found - 1)
        if key.high == name.high and key.low == name.low and not _is_over(keys, key, now_ms):
            return key
        found = index_find(&keys.index, name.high, &probe)
    return NULL


cdef void _forget_oldest(Keys *keys) noexcept nogil:
    cdef uint32_t place = keys.oldest & (keys.capacity - 1)
    index_remove(&keys.index, _at(keys, place).high, place)
    if not ledger_leaks(keys.ledger, KIND_KEY):
        ledger_release(keys.ledger, KIND_KEY, keys.named + keys.oldest)
    keys.oldest += 1
    if keys.oldest & ((1 << KEYS_BLOCK_BITS) - 1) == 0:
        _block_free(keys, place >> KEYS_BLOCK_BITS)


cdef void keys_expire(Keys *keys, uint64_t now_ms, uint32_t most) noexcept nogil:
    """Forget so many keys whose window is over."""
    while most and keys.oldest != keys.next \
            and _is_over(keys, _at(keys, keys.oldest & (keys.capacity - 1)), now_ms):
        _forget_oldest(keys)
        most -= 1


cdef int _blocks_make(Keys *keys) noexcept nogil:
    """Room for all the blocks there may be at once: those that are full, and parts of two more. -1: out of memory."""
    cdef uint32_t blocks = 2
    while blocks < (keys.keys_max >> KEYS_BLOCK_BITS) + 2:
        blocks *= 2
    keys.blocks = <Key **> calloc(blocks, sizeof(Key *))
    if keys.blocks == NULL:
        return -1
    keys.capacity = blocks << KEYS_BLOCK_BITS
    return 0


cdef Key *_next(Keys *keys) noexcept nogil:
    """Where the next key is to be kept; NULL: out of memory."""
    cdef uint32_t place
    if keys.capacity == 0 and _blocks_make(keys) < 0:
        return NULL
    place = keys.next & (keys.capacity - 1)
    if keys.blocks[place >> KEYS_BLOCK_BITS] == NULL:
        keys.blocks[place >> KEYS_BLOCK_BITS] = <Key *> pages_take(sizeof(Key) << KEYS_BLOCK_BITS)
        if keys.blocks[place >> KEYS_BLOCK_BITS] == NULL:
            return NULL
    return _at(keys, place)


cdef int key_keep(Keys *keys, const KeyName *name, uint64_t epoch, uint64_t offset, uint64_t now_ms) noexcept nogil:
    """Remember a key that `key_find` did not find; -1: out of memory."""
    cdef Key *key
    keys_expire(keys, now_ms, KEYS_STEP)
    if keys.next - keys.oldest >= keys.keys_max:
        _forget_oldest(keys)
    key = _next(keys)
    if key == NULL or index_put(&keys.index, name.high, keys.next & (keys.capacity - 1)) < 0:
        return -1
    key.high = name.high
    key.low = name.low
    key.epoch = epoch
    key.offset = offset
    key.kept_ms = now_ms
    ledger_acquire(keys.ledger, KIND_KEY, keys.named + keys.next, HERE)
    keys.next += 1
    return 0


cdef void keys_free(Keys *keys) noexcept nogil:
    cdef uint32_t block
    while keys.oldest != keys.next:
        _forget_oldest(keys)
    index_free(&keys.index)
    for block in range(keys.capacity >> KEYS_BLOCK_BITS):
        _block_free(keys, block)
    free(keys.blocks)
    keys.blocks = NULL
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

    @property
    def blocks(self):
        """How many there are."""
        return sum(1 for at in range(self.keys.capacity >> KEYS_BLOCK_BITS) if self.keys.blocks[at] != NULL)

    def sweep(self, unsigned long long now_ms):
        """As once a second in the router."""
        keys_expire(&self.keys, now_ms, KEYS_SWEPT)
