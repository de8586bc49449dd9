# The ledger: every acquisition and release is counted where it happens, so that opened - closed = live.
#
# One array of 64-bit words per process, in memory that the supervisor shares with the process and reads without asking
# it. Each word but those of ledger_count_shared has one writer, so plain stores do: the data-plane thread, or for kinds
# from KIND_TASK on the control thread (core/owned.py). A killed process's words stay until they are in the totals.
#
# A checked build knows more: where each live object was acquired (core/sites.pxd), and which release a test wants to be
# forgotten, so that the audit can be seen to find it. In release both are compiled out.

from libc.stdint cimport uint32_t, uint64_t

from core.sites cimport Site, Sites, site_add, site_remove

cdef extern from "invariant.h":
    enum:
        HOLDFAST_CHECKS

cdef enum:
    LEDGER_WORDS = 512
    TURN_PLACE = 2              # when the data plane's last turn began, CLOCK_MONOTONIC in ms; 0: none yet
    LEDGER_FIRST = 8            # words before: magic, version, the turn, reserved
    COUNTER_FIRST = 72          # room for 32 kinds of two words each
    REASON_FIRST = 136          # one word a code: connections closed for that reason
    STATE_FIRST = 168           # one word a state: connections that entered it
    GAUGE_FIRST = 200
    ERROR_FIRST = 256           # one word a code: requests answered by ERROR with it
    TIME_FIRST = 288            # TIME_WORDS each: a word a bucket, then the sum in ms
    TIME_BUCKETS = 14           # the last one has no upper bound
    TIME_WORDS = 16

cdef enum Kind:
    KIND_FD
    KIND_CONNECTION
    KIND_RING
    KIND_BUFFER
    KIND_SEGMENT
    KIND_TIMER
    KIND_CHANNEL
    KIND_MEMBERSHIP
    KIND_PENDING                # joins and opens that wait for the router
    KIND_REQUEST                # publishes, history and presence requests under way to the router
    KIND_ZMQ_MESSAGE
    KIND_SESSION                # sessions that a router knows the owner of
    KIND_SUBSCRIPTION           # (channel, worker) pairs at a router
    KIND_HISTORY                # messages kept at a router
    KIND_KEY                    # idempotency keys kept at a router
    KIND_TLS                    # TLS states of connections
    KIND_PEER                   # streams of the bus
    KIND_ASIDE                  # what connections hold that most need not
    KIND_LAG                    # members that are behind in a channel
    KIND_KEPT                   # blocks of records that wait for the router's answer
    KIND_TASK                   # from here on counted by the control thread: asyncio tasks
    KIND_HANDLE                 # Python objects that have to be closed
    KIND_HTTP_CLIENT            # connections to the admin server
    KIND_LEASE                  # locks held for as long as the process runs: its run directory's
    KIND_CONTROL_FD             # descriptors of the control thread
    KIND_COUNT

cdef enum Counter:
    COUNT_CONNECTIONS_REFUSED
    COUNT_FRAMES_IN
    COUNT_BYTES_IN
    COUNT_BYTES_OUT
    COUNT_SENDS
    COUNT_PUBLISHES
    COUNT_DELIVERED
    COUNT_TRANSCODED
    COUNT_PINGS_SENT
    COUNT_PONGS_HEARD
    COUNT_HEARTBEATS_LOST
    COUNT_HELLO_TIMEOUTS
    COUNT_SLOW_CONSUMERS
    COUNT_BAD_FRAMES
    COUNT_ERRORS_SENT
    COUNT_FINS_SENT
    COUNT_GIL_TAKES
    COUNT_WAKEUPS
    COUNT_BATCHES_IN
    COUNT_BATCHES_OUT
    COUNT_BUS_FULL
    COUNT_ROUTER_LINKS
    COUNT_GAPS_TRIMMED          # members told of messages that will not come, in the order of GapReason
    COUNT_GAPS_LOST
    COUNT_GAPS_ROUTER_LOST
    COUNT_GAPS_SLOW_CONSUMER
    COUNT_GAPS_RESET            # positions that have no history in common with their channel's
    COUNT_ACKS
    COUNT_REPEATED_KEYS
    COUNT_MESSAGES_ROUTED
    COUNT_MESSAGES_SEQUENCED
    COUNT_WORKERS_LOST
    COUNT_ILLEGAL_STATES
    COUNT_TLS_HANDSHAKES        # finished
    COUNT_TLS_RESUMED           # of these, by a ticket
    COUNT_TLS_FAILURES          # handshakes that broke: no TLS, no common version, a refused certificate
    COUNT_ROUND_TRIPS           # PONGs that answered the PING which was waiting, and so measured one
    COUNT_ROUND_TRIP_MS         # their sum
    COUNT_PINGS_LOST            # PINGs without an answer when the next was due, and gaps in the peers' numbers
    COUNT_HEARTBEATS_STRANGE    # PONGs that echo no PING of ours, PINGs whose number went back
    COUNT_REPLIES_SENT          # REPLY and WELCOME
    COUNT_REFUSED_UNANSWERED    # refused requests that had asked for no answer
    COUNT_DRAIN_CUT             # connections that a drain had no time to tell in order
    COUNT_FRAME_TIMEOUTS        # frames that were begun and not complete in time
    COUNT_HANDLES_LEAKED        # Python handles that were collected while open
    COUNT_TASKS_FAILED          # asyncio tasks that ended with an exception
    COUNT_NOT_LOGGED            # messages that were delivered without the log: it was away for too long
    COUNT_LOG_RECORDS           # that the log has
    COUNT_LOG_BATCHES
    COUNT_PASSED_OVER           # messages that were left out for members that take too little
    COUNT_ASKED_AGAIN           # requests that were said again to the next router
    COUNT_REPLAYED              # messages that were missed and delivered later
    COUNT_STATES_LOST           # changes of sessions' state that found no room on their way to the store; both threads'
    COUNT_SUBSCRIPTIONS_REFUSED     # SUBSCRIBEs that the router had no room for
    COUNT_HISTORY_SQUEEZED      # messages that left the router's memory before their age, for want of room
    COUNT_LOG_OUTGROWN          # messages that left the embedded log before their age, for want of room
    COUNT_LOG_BATCHES_REPLICATED    # of the log's batches, that some other region has
    COUNT_LOG_BATCHES_FOLLOWED      # of other regions' logs, that this one's has now
    COUNT_LOG_RECORDS_DROPPED       # that only this region had, when another one went on without them
    COUNT_ABROAD_LOST           # what is in no log, and found no way to other regions; both threads'
    COUNT_COUNT

cdef enum Gauge:
    GAUGE_OPEN_CONNECTIONS
    GAUGE_LINKED                # 1: the router knows this worker; at a router: how many workers are linked
    GAUGE_QUEUED_BYTES
    GAUGE_ROUTER_EPOCH
    GAUGE_HANDSHAKES            # connections that wait for their WELCOME
    GAUGE_DRAIN_PACE            # clients a second that a drain tells to come back
    GAUGE_LOG_BYTES             # ordered, and not in the log yet
    GAUGE_LOG_BYTES_MAX         # at most; 0: there is no log
    GAUGE_LOG_AWAY              # 1: the log does not take batches
    GAUGE_HELD_BYTES            # held aside for members that take too little
    GAUGE_KEPT_BYTES            # of blocks that hold what waits for the router's answer
    GAUGE_LOG_DISK_BYTES        # of the embedded log's segments
    GAUGE_LOG_DISK_BYTES_MAX    # at most; 0: there is no bound, or no such log
    GAUGE_LOG_REDIS_KEPT_BYTES  # kept to be given to Redis again
    GAUGE_LOG_REDIS_KEPT_BYTES_MAX  # of what Redis has already; 0: the log is not in Redis
    GAUGE_COUNT

cdef enum Time:
    TIME_PUBLISH                # from the PUBLISH to the router's answer, or to the end of the wait for it
    TIME_WELCOME                # from the accept to WELCOME
    TIME_COUNT

cdef extern from *:
    """
    static const unsigned int HOLDFAST_TIME_BOUNDS_MS[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000};
    """
    const unsigned int *TIME_BOUNDS_MS "HOLDFAST_TIME_BOUNDS_MS"

ctypedef struct Ledger:
    uint64_t *words             # borrowed until the Stats object that maps it is closed
    Sites *sites                # borrowed likewise; NULL in release
    uint32_t *leaks             # borrowed likewise: releases to be forgotten, one number a kind; NULL in release


cdef inline void ledger_open(Ledger *ledger, int kind) noexcept nogil:
    ledger.words[LEDGER_FIRST + 2 * kind] += 1


cdef inline void ledger_close(Ledger *ledger, int kind) noexcept nogil:
    ledger.words[LEDGER_FIRST + 2 * kind + 1] += 1


cdef inline void ledger_acquire(Ledger *ledger, int kind, uint64_t key, const Site *site) noexcept nogil:
    """Count an object that can be told from others of its kind by `key`; `site` is HERE."""
    ledger_open(ledger, kind)
    if HOLDFAST_CHECKS and ledger.sites != NULL:
        site_add(ledger.sites, kind, key, site)


cdef inline void ledger_release(Ledger *ledger, int kind, uint64_t key) noexcept nogil:
    ledger_close(ledger, kind)
    if HOLDFAST_CHECKS and ledger.sites != NULL:
        site_remove(ledger.sites, kind, key)


cdef inline bint ledger_leaks(Ledger *ledger, int kind) noexcept nogil:
    """Checked builds: whether a test wants this release to be forgotten. Never in release."""
    if HOLDFAST_CHECKS and ledger.leaks != NULL and ledger.leaks[kind]:
        ledger.leaks[kind] -= 1
        return True
    return False


cdef inline uint64_t ledger_live(Ledger *ledger, int kind) noexcept nogil:
    return ledger.words[LEDGER_FIRST + 2 * kind] - ledger.words[LEDGER_FIRST + 2 * kind + 1]


cdef inline void ledger_count(Ledger *ledger, int counter, uint64_t by) noexcept nogil:
    ledger.words[COUNTER_FIRST + counter] += by


cdef inline void ledger_turn(Ledger *ledger, uint64_t now_ms) noexcept nogil:
    """A turn begins; whoever watches sees by it that the thread is not stuck."""
    ledger.words[TURN_PLACE] = now_ms


cdef inline void ledger_gauge(Ledger *ledger, int gauge, uint64_t value) noexcept nogil:
    ledger.words[GAUGE_FIRST + gauge] = value


cdef inline void ledger_error(Ledger *ledger, int code) noexcept nogil:
    """A request was answered by ERROR."""
    ledger.words[COUNTER_FIRST + COUNT_ERRORS_SENT] += 1
    ledger.words[ERROR_FIRST + reason_place(code)] += 1


cdef inline void ledger_time(Ledger *ledger, int time, uint64_t ms) noexcept nogil:
    """Something took so long. Once a request, never once a delivery."""
    cdef int bucket = 0
    while bucket < TIME_BUCKETS - 1 and ms > TIME_BOUNDS_MS[bucket]:
        bucket += 1
    ledger.words[TIME_FIRST + time * TIME_WORDS + bucket] += 1
    ledger.words[TIME_FIRST + time * TIME_WORDS + TIME_BUCKETS] += ms


cdef inline int reason_place(int code) noexcept nogil:
    """The place of a code in the dense table of reasons, 0 to 24."""
    if code < 200:
        return code if code < 8 else 6
    if code < 400:
        return 8 + code - 200
    return 11 + code - 400 if code < 600 else 18 + code - 600


cdef extern from *:
    """
    #define HOLDFAST_ADD(word, by) ((void) __atomic_fetch_add(word, by, __ATOMIC_RELAXED))
    """
    void HOLDFAST_ADD(uint64_t *word, uint64_t by) noexcept nogil


cdef inline void ledger_count_shared(Ledger *ledger, int counter, uint64_t by) noexcept nogil:
    """As ledger_count, of a counter that both threads of the process write."""
    HOLDFAST_ADD(&ledger.words[COUNTER_FIRST + counter], by)


cdef str place_text(const Site *site)


cdef class Stats:
    cdef Ledger ledger
    cdef Sites sites            # owned; checked builds only, as the next
    cdef uint32_t leaks[KIND_COUNT]
    cdef object memory          # owned: the mmap (or bytearray) that holds the words
    cdef object view            # keeps the buffer export alive while `ledger.words` points into it
