# Listing: the registry's questions. Which connections fit a query, and, for RECLAIM, ending those that do.
#
# A note names the slot to begin with, and one turn looks at SLOTS_MAX slots and packs RECORDS_MAX records at most; the
# answer says where to go on. Nothing is kept between two notes, so a listing costs nobody anything when whoever asked
# is gone, and clients wait for one turn's part of it, however many connections there are. A connection that lives from
# the first note to the last stands in its slot all the time, so it is found exactly once.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.edge cimport Edge
from core.mailbox cimport Note

cdef enum:
    SLOTS_MAX = 4096            # of one turn
    RECORDS_MAX = 128           # of one turn
    PEERS_MAX = 256             # of one turn: connections whose peer the kernel is asked for, a system call each
    RECORD_BYTES_MAX = 512      # a record is below: the user has 250 bytes, the rest 200
    LIST_END = 0xFFFFFFFF

ctypedef struct ListQuery:      # 72 bytes, as `query` packs it; in a note the names of user and channel follow it
    uint64_t conn               # handle of the only one that is asked for; 0: whoever fits the rest
    uint32_t slot               # to begin with
    uint32_t limit              # records
    uint32_t older              # ticks since it was accepted, at least
    uint32_t idle               # ticks since anything was heard, at least
    uint32_t queued_bytes       # at least
    uint8_t states              # one bit a state that fits
    uint8_t by_user             # 1: only those of the user; likewise the next two
    uint8_t by_session
    uint8_t by_address
    uint8_t session[16]
    uint8_t address[16]         # IPv6, or IPv4 mapped
    uint8_t by_channel          # 1: only members of the channel
    uint8_t by_device           # 1: only those whose device is of the class
    uint8_t device              # its number, 0: those that told none
    uint8_t reserved
    uint32_t user_size          # of the user's name

cdef void listing_turn(Edge *edge, Note *note, const uint8_t *text, const uint8_t *reason) noexcept nogil
