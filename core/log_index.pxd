# Log index: where in the segments of the embedded log the messages of each channel are.
#
# It mirrors what is on disk: a record that is appended is added, one that a sift took away or wrote elsewhere is
# settled. Of each channel it names the messages that its namespace's size still keeps; older ones are on disk until a
# sift and are not found any more. How old they may be is the router's to say, which reads them. About 32 bytes a
# message. Invariant: the places of a channel are in the order of its messages: their offsets ascend, their segments
# never go down.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.batch cimport Batch
from core.hash cimport HashKey, Index
from core.log_records cimport LogRecord
from core.names cimport Names
from core.namespaces cimport Namespace, Namespaces
from core.slab cimport Slab

cdef enum:
    HISTORY_AGE_DAYS_MAX = 366  # core.namespace_spec.HISTORY_AGE_S_MAX
    SETTLED = 0x80000000        # beside a segment's number: written by the sift that is being settled

ctypedef struct Place:          # 24 bytes: a message that is kept
    uint64_t offset
    uint32_t segment
    uint32_t at                 # of the record in the segment's file
    uint32_t size               # of the whole record, a multiple of 8; in the low bits how much of it is padding
    uint32_t check              # of the record's bytes

ctypedef struct Channel:        # 64 bytes: one cache line
    uint64_t epoch              # of its last record: its position
    uint64_t offset
    uint64_t message_epoch      # of its last message
    uint64_t bytes              # of the bodies at its places
    Place *places               # owned: `capacity` of them, a ring
    uint32_t first
    uint32_t count
    uint32_t capacity           # a power of two, or 0
    uint32_t segment            # where the record of its position is
    uint32_t name               # owned: number in the index's names
    uint8_t name_size
    uint8_t live

ctypedef struct LogPlaces:
    Slab slab
    Index index
    Names names
    HashKey key
    Namespaces namespaces       # how much is kept of one channel
    uint64_t count              # places of all channels
    uint64_t bytes              # of the records at these places


cdef inline uint64_t history_age_ms(const Namespace *namespace) noexcept nogil:
    """For how long messages are kept; of a namespace that is not configured (NULL), as long as any may ask for: what
    was promised once may be wanted when it is configured again."""
    return HISTORY_AGE_DAYS_MAX * <uint64_t> 86400000 if namespace == NULL else namespace.history_age_ms


cdef inline Place *channel_place(Channel *channel, uint32_t number) noexcept nogil:
    """The place of a channel's message, the oldest is 0."""
    return &channel.places[(channel.first + number) & (channel.capacity - 1)]


cdef inline uint32_t place_size(const Place *place) noexcept nogil:
    """Bytes of the record."""
    return place.size & ~(<uint32_t> 7)


cdef inline uint32_t place_body_size(const Channel *channel, const Place *place) noexcept nogil:
    """Bytes of the message in it."""
    return place_size(place) - (place.size & 7) - channel.name_size - <uint32_t> sizeof(LogRecord)


cdef Channel *places_find(LogPlaces *places, const char *name, uint32_t size) noexcept nogil
cdef bint places_add(LogPlaces *places, const LogRecord *record, uint32_t segment, uint32_t at) noexcept nogil
cdef bint places_ask(LogPlaces *places, const LogRecord *record, uint32_t segment, uint32_t at,
                     bint whole_wanted, Batch *asked) noexcept nogil
