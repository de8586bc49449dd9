"""The ledger's Python face: map a process's counters, and read those of another process."""

import mmap
import os
import struct

from core.codes import TABLE

from libc.stdint cimport uint64_t

from core.sites cimport sites_free

CHECKED = bool(HOLDFAST_CHECKS)
STATS_BYTES = LEDGER_WORDS * 8
KINDS = ("fd", "connection", "ring", "buffer", "segment", "timer", "channel", "membership", "pending", "request",
         "zmq_message", "session", "subscription", "history", "key", "tls", "peer", "aside", "lag", "kept", "task",
         "handle", "http_client", "lease", "control_fd")
# Of these the control thread is the writer; the others are the data plane's.
CONTROL_KINDS = KINDS[KIND_TASK:]
# Checked builds: kinds of which the next release is to be forgotten, as "ring,fd"; how tests prove that audits find it.
LEAKS_VARIABLE = "HOLDFAST_TEST_LEAKS"
COUNTERS = ("connections_refused", "frames_in", "bytes_in", "bytes_out", "sends", "publishes", "messages_delivered",
            "transcoded", "pings_sent", "pongs_heard", "heartbeats_lost", "hello_timeouts", "slow_consumers",
            "bad_frames", "errors_sent", "fins_sent", "gil_takes", "wakeups", "batches_in", "batches_out", "bus_full",
            "router_links", "gaps_trimmed", "gaps_lost", "gaps_router_lost", "gaps_slow_consumer", "gaps_reset",
            "acks", "repeated_keys", "messages_routed", "messages_sequenced", "workers_lost", "illegal_states",
            "tls_handshakes", "tls_resumed", "tls_failures", "round_trips", "round_trip_ms", "pings_lost",
            "heartbeats_strange", "replies_sent", "refused_unanswered", "drain_cut", "frame_timeouts",
            "handles_leaked", "tasks_failed", "messages_not_logged", "log_records", "log_batches", "passed_over",
            "asked_again", "replayed", "states_lost", "subscriptions_refused", "history_squeezed", "log_outgrown",
            "log_batches_replicated", "log_batches_followed", "log_records_dropped", "abroad_lost")
STATES = ("accepted", "handshaking", "open", "closing", "closed")
GAUGES = ("open_connections", "linked", "queued_bytes", "router_epoch", "handshakes", "drain_pace", "log_bytes",
          "log_bytes_max", "log_away", "held_bytes", "kept_bytes", "log_disk_bytes", "log_disk_bytes_max",
          "log_redis_kept_bytes", "log_redis_kept_bytes_max")
TIMES = ("publish", "welcome")
BOUNDS_MS = tuple([TIME_BOUNDS_MS[place] for place in range(TIME_BUCKETS - 1)])
assert len(KINDS) == KIND_COUNT and len(COUNTERS) == COUNT_COUNT and len(GAUGES) == GAUGE_COUNT
assert len(TIMES) == TIME_COUNT and TIME_BUCKETS < TIME_WORDS
assert LEDGER_FIRST + 2 * KIND_COUNT <= COUNTER_FIRST and COUNTER_FIRST + COUNT_COUNT <= REASON_FIRST
assert GAUGE_FIRST + GAUGE_COUNT <= ERROR_FIRST and TIME_FIRST + TIME_COUNT * TIME_WORDS <= LEDGER_WORDS


cdef str place_text(const Site *site):
    """`core/ring.pxd:91 in core.intake`; empty for none."""
    return "" if site == NULL else f"{site.file.decode()}:{site.line} in {site.module.decode()}"


cdef class Stats:
    """This process's counters, in the shared memory behind `fd` or, when `fd` is -1, in memory of its own."""

    def __init__(self, int fd=-1):
        self.memory = mmap.mmap(fd, STATS_BYTES)
        self.view = memoryview(self.memory)
        cdef unsigned char[::1] words = self.view
        self.ledger.words = <uint64_t *> &words[0]
        if HOLDFAST_CHECKS:
            self.ledger.sites = &self.sites
            self.ledger.leaks = self.leaks
            for kind in filter(None, os.environ.get(LEAKS_VARIABLE, "").split(",")):
                self.leak(kind)

    def __dealloc__(self):
        sites_free(&self.sites)

    def leak(self, str kind):
        """Let the next release of a kind be forgotten: a leak on purpose.

        Raises:
            RuntimeError: this is a release build, which cannot do so.
        """
        if not HOLDFAST_CHECKS:
            raise RuntimeError("only a checked build leaks on purpose")
        self.leaks[KINDS.index(kind)] += 1

    def leaks_now(self, str kind):
        """The control thread's side of `leak`: True when this release is to be forgotten."""
        return bool(ledger_leaks(&self.ledger, KINDS.index(kind)))

    def opened(self, str kind):
        """The control thread acquired one of its kinds."""
        ledger_open(&self.ledger, KINDS.index(kind, KIND_TASK))

    def closed(self, str kind):
        """The control thread released one of its kinds."""
        ledger_close(&self.ledger, KINDS.index(kind, KIND_TASK))

    def count(self, str counter, uint64_t by=1):
        """Add to a counter that is the control thread's, or that both threads write."""
        ledger_count_shared(&self.ledger, COUNTERS.index(counter), by)

    def gauge(self, str gauge, uint64_t value):
        """Set a gauge that is the control thread's."""
        ledger_gauge(&self.ledger, GAUGES.index(gauge), value)

    def places(self, str kind):
        """Where the live objects of a kind were acquired, in no order; empty in release."""
        cdef uint32_t place
        cdef int wanted = KINDS.index(kind)
        found = []
        for place in range(self.sites.capacity):
            if self.sites.entries[place].site != NULL and self.sites.entries[place].kind == <uint32_t> wanted:
                found.append(place_text(self.sites.entries[place].site))
        return found

    def read(self):
        """The counters now, in the shape that the module's `read` gives."""
        return read(self.memory)


def turn_ms(buffer):
    """When the last turn of the process's data plane began, as CLOCK_MONOTONIC counts; 0: there was none yet."""
    return struct.unpack_from("=Q", buffer, 8 * TURN_PLACE)[0]


def read(buffer):
    """Counters of one process.

    Args:
        buffer: at least STATS_BYTES bytes, as written by a Stats of the same version.

    Returns:
        {"ledger": {"fd_opened": n, "fd_closed": n, ...}, "counters": {...}, "gauges": {...}, "errors": {code: n, ...},
        "times": {"publish_1": n, ..., "publish_inf": n, "publish_sum": ms, ...}}: of each time how often it took up to
        so many ms (and longer than the bound before), and the sum of all.
    """
    words = struct.unpack(f"={LEDGER_WORDS}Q", bytes(memoryview(buffer)[:STATS_BYTES]))
    ledger = {}
    for place, kind in enumerate(KINDS):
        ledger[f"{kind}_opened"] = words[LEDGER_FIRST + 2 * place]
        ledger[f"{kind}_closed"] = words[LEDGER_FIRST + 2 * place + 1]
    counters = {name: words[COUNTER_FIRST + place] for place, name in enumerate(COUNTERS)}
    for info in TABLE:
        counters[f"closed_{info.name}"] = words[REASON_FIRST + reason_place(info.number)]
    for place, name in enumerate(STATES):
        counters[f"entered_{name}"] = words[STATE_FIRST + place]
    gauges = {name: words[GAUGE_FIRST + place] for place, name in enumerate(GAUGES)}
    errors = {info.name: words[ERROR_FIRST + reason_place(info.number)] for info in TABLE}
    times = {}
    for place, name in enumerate(TIMES):
        for bucket, bound in enumerate((*BOUNDS_MS, "inf", "sum")):
            times[f"{name}_{bound}"] = words[TIME_FIRST + place * TIME_WORDS + bucket]
    return {"ledger": ledger, "counters": counters, "gauges": gauges, "errors": errors, "times": times}
