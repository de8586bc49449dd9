"""Doors into the core for tests only: parts that have no Python face of their own."""

import os

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from core.answers cimport answer_raw
from core.audit cimport SlabWalk, slab_walk, slab_walk_next
from core.batch cimport Batch, batch_clear, batch_free
from core.buffer cimport Segment, arena_rest
from core.catchup cimport Found, catchup_find
from core.conn cimport (FORM_COUNT, STATE_CLOSED, Connection, conn_acquire, conn_memberships, conn_release,
                        conn_set_state)
from core.edge cimport NONE, REQUEST_PUBLISH, Channel, ChannelMember, Edge, Request
from core.fanout cimport (channel_acquire, channel_at, channel_find, channel_members, channel_name, member_add,
                          member_remove, member_remove_all, parted_say)
from core.hash cimport HashKey, index_free
from core.joins cimport state_say
from core.ledger cimport COUNT_ILLEGAL_STATES, COUNTER_FIRST, KIND_FD, Stats, ledger_error, ledger_release, ledger_time
from core.mailbox cimport Mailbox, Note, mailbox_drain, mailbox_free, mailbox_init, mailbox_put, mailbox_ring
from core.names cimport names_free, names_init
from core.namespaces cimport DOMAIN_GROUP, Namespace, Namespaces, namespace_of, namespaces_fill
from core.outbox cimport outbox_drop, outbox_send, outbox_settle
from core.requests cimport request_done, request_open, request_peek, requests_free
from core.slab cimport SLAB_NONE, slab_at, slab_free, slab_init
from core.told cimport told_free, told_init, told_say_all
from core.stream cimport (History, Stored, Stream, Streams, route_remove, route_set, routes_forget,
                          stream_advance, stream_find, stream_kept, stream_reach, stream_route, stream_store,
                          stream_stored, stream_use, stream_wanted, streams_free, streams_init, streams_sweep)

from core import conn as _conn
from core.namespace_spec import BUILT_IN as _BUILT_IN
from core.records import OUTCOMES as _OUTCOMES


def change_state(str old, str new):
    """Let a connection in state `old` enter `new`; returns how many illegal changes were counted."""
    cdef Connection connection
    stats = Stats()
    memset(&connection, 0, sizeof(connection))
    connection.state = _conn.STATES.index(old)
    conn_set_state(&connection, &(<Stats> stats).ledger, _conn.STATES.index(new))
    return (<Stats> stats).ledger.words[COUNTER_FIRST + COUNT_ILLEGAL_STATES]


cdef class Requests:
    """The ring of requests, from a chosen seq on."""

    cdef Edge *edge
    cdef Stats stats

    def __init__(self, Stats stats, uint32_t first):
        self.stats = stats
        self.edge = <Edge *> calloc(1, sizeof(Edge))
        self.edge.ledger = &stats.ledger
        self.edge.requests.oldest = first
        self.edge.requests.next = first

    def __dealloc__(self):
        requests_free(self.edge)
        free(self.edge)

    def open(self, uint64_t id):
        """A new request for the client's `id`: its seq, 0 at the bound."""
        return request_open(self.edge, REQUEST_PUBLISH, 1, id, NONE)

    def peek(self, uint32_t seq):
        """The client's id of an open request, or None."""
        cdef Request *request = request_peek(self.edge, seq)
        return None if request == NULL else request.request

    def done(self, uint32_t seq):
        request_done(self.edge, seq)

    @property
    def span(self):
        """How many seqs lie between the oldest open request and the next."""
        return <uint32_t> (self.edge.requests.next - self.edge.requests.oldest)


cdef class Box:
    """One mailbox; notes have only a kind and two byte strings here."""

    cdef Mailbox box
    cdef readonly int fd

    def __init__(self, int bytes_max):
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        mailbox_init(&self.box, self.fd)
        self.box.filled.bytes_max = bytes_max
        self.box.drained.bytes_max = bytes_max

    def __dealloc__(self):
        mailbox_free(&self.box)
        os.close(self.fd)

    def put(self, int kind, bytes text, bytes extra):
        """False when the box is full."""
        cdef Note note
        cdef const uint8_t *first = text
        cdef const uint8_t *second = extra
        cdef int status
        memset(&note, 0, sizeof(note))
        note.kind = <uint16_t> kind
        note.text_size = len(text)
        note.extra_size = len(extra)
        with nogil:
            status = mailbox_put(&self.box, &note, first, second)
        return status == 0

    def ring(self):
        return mailbox_ring(&self.box)

    def drain(self):
        """[(kind, text, extra), ...] of everything put so far."""
        cdef Batch *batch
        cdef uint32_t place = 0
        cdef Note *note
        cdef char *text
        with nogil:
            batch = mailbox_drain(&self.box)
        notes = []
        while place < batch.size:
            note = <Note *> (batch.data + place)
            text = <char *> note + sizeof(Note)
            notes.append((note.kind, text[:note.text_size], (text + note.text_size)[:note.extra_size]))
            place += note.size
        return notes


cdef class StreamTable:
    """A sequencer's streams; time is an argument."""

    cdef Streams streams
    cdef Namespaces namespaces
    cdef Stats stats

    def __init__(self, Stats stats, *, int messages, int bytes_max, unsigned long long age_ms, int streams_max=1000,
                 unsigned long long epoch=1):
        cdef HashKey key
        key.k0 = key.k1 = 0
        self.stats = stats
        namespaces_fill(&self.namespaces, _BUILT_IN)
        for place in range(self.namespaces.count):      # all alike, and the age finer than an operator can say it
            self.namespaces.entries[place].history_messages = messages
            self.namespaces.entries[place].history_bytes = bytes_max
            self.namespaces.entries[place].history_age_ms = age_ms
        streams_init(&self.streams, &stats.ledger, &self.namespaces, key, 1)
        self.streams.epochs[0] = epoch
        self.streams.history_total_max = 1 << 30
        self.streams.streams_max = streams_max

    def __dealloc__(self):
        streams_free(&self.streams)

    def keep_for(self, bytes name, unsigned long long age_ms):
        """Change how long the namespace of a name keeps its messages."""
        (<Namespace *> namespace_of(&self.namespaces, name, len(name))).history_age_ms = age_ms

    cdef Stream *find(self, bytes name) except NULL:
        cdef Stream *stream = stream_find(&self.streams, name, len(name))
        if stream == NULL:
            raise KeyError(name)
        return stream

    def wanted(self, bytes name, unsigned long long now_ms):
        """(epoch, offset) of the stream, which is made if it is new; None at the bound."""
        cdef Stream *stream = stream_wanted(&self.streams, name, len(name), now_ms)
        return None if stream == NULL else (stream.epoch, stream.offset)

    def store(self, bytes name, bytes body, unsigned long long now_ms):
        """The next message of a stream."""
        cdef Stream *stream = self.find(name)
        cdef Stored head
        stream_use(stream, now_ms)
        if not stream_advance(&self.streams, stream):
            raise MemoryError
        stream_reach(stream, stream.epoch, stream.history.given)
        head.epoch = stream.epoch
        head.offset = stream.offset
        head.time_ms = now_ms
        head.size = <uint32_t> len(body)
        stream_store(&self.streams, stream, &head, <const uint8_t *> <const char *> body, now_ms)

    def history(self, bytes name):
        """[(offset, body), ...], oldest first."""
        cdef Stream *stream = self.find(name)
        kept = []
        for place in range(stream_kept(stream)):
            stored = (<char *> stream_stored(stream, place).body)[:stream_stored(stream, place).size]
            kept.append((stream_stored(stream, place).offset, stored))
        return kept

    def route_set(self, bytes name, uint32_t worker, uint64_t channel):
        return route_set(&self.streams, self.find(name), worker, channel)

    def route_remove(self, bytes name, uint32_t worker, uint64_t channel):
        return route_remove(&self.streams, self.find(name), worker, channel)

    def remove_worker(self, uint32_t worker):
        cdef uint32_t place = 0
        while not routes_forget(&self.streams, worker, &place, 3):
            pass

    def routes(self, bytes name):
        """{worker: channel handle}, None when the stream is gone."""
        cdef Stream *stream = stream_find(&self.streams, name, len(name))
        if stream == NULL:
            return None
        return {stream_route(stream, place).worker: stream_route(stream, place).channel
                for place in range(stream.route_count)}

    def sweep(self, unsigned long long now_ms, uint32_t slots=100000):
        streams_sweep(&self.streams, now_ms, slots)


cdef class StreamModel:
    """A stream as it stands, for the rules of catch-up: its position, and the messages that are kept."""

    cdef Stream stream
    cdef History history

    def __init__(self, uint64_t epoch, uint64_t offset, uint64_t base, list messages):
        """`messages`: the kept ones, oldest first, as (epoch, offset)."""
        cdef Stored *stored
        self.stream.epoch = epoch
        self.stream.offset = offset
        self.stream.history = &self.history
        self.history.base = base
        self.history.capacity = 1
        while self.history.capacity < len(messages):
            self.history.capacity *= 2
        self.history.ring = <Stored **> calloc(self.history.capacity, sizeof(Stored *))
        for of_epoch, at in messages:
            stored = <Stored *> calloc(1, sizeof(Stored))
            stored.epoch, stored.offset, stored.time_ms = of_epoch, at, 1
            self.history.ring[self.history.count] = stored
            self.history.count += 1
            self.history.last_epoch = of_epoch if at == offset else 0

    def __dealloc__(self):
        for place in range(self.history.count):
            free(self.history.ring[place])
        free(self.history.ring)

    def find(self, uint64_t epoch, uint64_t offset):
        """(outcome, reason of the gap, (from, to), offsets of the messages that follow)."""
        cdef Found found
        catchup_find(&self.stream, 0, epoch, offset, &found)
        rest = [self.history.ring[place].offset for place in range(found.place, self.history.count)]
        return (_OUTCOMES[found.outcome], ("none", "trimmed", "lost")[found.reason], (found.gap_from, found.gap_to),
                rest)


cdef class Members:
    """A worker's tables of connections and channels without its sockets: queues and memberships."""

    cdef Edge *edge
    cdef Stats stats

    def __init__(self, Stats stats, uint32_t queue_bytes_max=1 << 20):
        cdef Edge *edge = <Edge *> calloc(1, sizeof(Edge))
        self.edge = edge
        self.stats = stats
        edge.ledger = &stats.ledger
        edge.config.queue_bytes_max = queue_bytes_max
        edge.links[0].out.bytes_max = 1 << 24
        edge.links[0].parted.bytes_max = 1 << 24
        told_init(edge)
        edge.shard_count = 1
        slab_init(&edge.connections, sizeof(Connection), 4, 100000)
        slab_init(&edge.channels, sizeof(Channel), 4, 100000)
        slab_init(&edge.segments, sizeof(Segment), 4, 100000)
        names_init(&edge.names)

    def __dealloc__(self):
        cdef int form
        cdef uint32_t index
        cdef SlabWalk walk
        slab_walk(&walk, &self.edge.connections)
        index = slab_walk_next(&walk)
        while index != SLAB_NONE:
            member_remove_all(self.edge, self.at(index))
            outbox_drop(self.edge, self.at(index))
            index = slab_walk_next(&walk)
        for form in range(FORM_COUNT):
            arena_rest(&self.edge.arenas[form], self.edge.ledger, False)
        slab_free(&self.edge.connections)
        slab_free(&self.edge.channels)
        slab_free(&self.edge.segments)
        names_free(&self.edge.names)
        index_free(&self.edge.channel_index)
        batch_free(&self.edge.links[0].out)
        batch_free(&self.edge.links[0].parted)
        told_free(self.edge)
        free(self.edge)

    cdef Connection *at(self, uint32_t conn) noexcept:
        return <Connection *> slab_at(&self.edge.connections, conn)

    def connect(self, int fd):
        """A connection over a socket that stays the caller's; its index."""
        return conn_acquire(&self.edge.connections, self.edge.ledger, &self.edge.generation, fd).index

    def disconnect(self, uint32_t conn):
        """Drop all that it holds, and the connection."""
        cdef Connection *connection = self.at(conn)
        member_remove_all(self.edge, connection)
        outbox_drop(self.edge, connection)
        ledger_release(self.edge.ledger, KIND_FD, connection.fd)
        connection.fd = -1
        connection.state = STATE_CLOSED
        conn_release(&self.edge.connections, self.edge.ledger, connection)

    def join(self, uint32_t conn, bytes name):
        cdef Channel *channel = channel_find(self.edge, name, len(name))
        if channel == NULL:
            channel = channel_acquire(self.edge, name, len(name), DOMAIN_GROUP)
        return member_add(self.edge, self.at(conn), channel)

    def leave(self, uint32_t conn, bytes name):
        """False when it was no member; the first channel that a connection joined stays."""
        cdef Channel *channel = channel_find(self.edge, name, len(name))
        return channel != NULL and member_remove(self.edge, self.at(conn), channel)

    def room(self, uint32_t bytes_max):
        """How many bytes the router may be told in one turn."""
        self.edge.links[0].out.bytes_max = bytes_max

    def said(self):
        """End the turn: the batch for the router, which takes it."""
        batch = b"" if not self.edge.links[0].out.size else self.edge.links[0].out.data[:self.edge.links[0].out.size]
        batch_clear(&self.edge.links[0].out)
        return batch

    def tell(self, uint32_t conn, bytes name, int what):
        """A STATE of the connection in a channel that is there."""
        state_say(self.edge, self.at(conn), channel_find(self.edge, name, len(name)), what, 1, 2)

    def again(self):
        """What a router that asks for everything is told first, after the turn before it."""
        self.said()
        cdef uint64_t shards[4]
        memset(shards, 0xFF, sizeof(shards))
        told_say_all(self.edge, &self.edge.links[0], shards)
        return self.said()

    def heartbeat(self):
        """What the link says again in the turn of its heartbeat."""
        parted_say(&self.edge.links[0])

    def members(self, bytes name):
        """The members of a channel, None when there is no such channel; raises when the two sides disagree."""
        cdef Channel *channel = channel_find(self.edge, name, len(name))
        cdef Connection *connection
        cdef ChannelMember member
        if channel == NULL:
            return None
        found = []
        for place in range(channel.count):
            member = channel_members(channel)[place]
            connection = self.at(member.conn)
            slot = member.slot
            if slot >= connection.membership_count or conn_memberships(connection)[slot].place != place \
                    or conn_memberships(connection)[slot].channel != channel.index:
                raise AssertionError(f"member {place} of {name!r} and its connection disagree")
            found.append(member.conn)
        return found

    def channels(self, uint32_t conn):
        """The names of the channels that a connection is in."""
        cdef Connection *connection = self.at(conn)
        cdef Channel *channel
        names = []
        for slot in range(connection.membership_count):
            channel = channel_at(self.edge, conn_memberships(connection)[slot].channel)
            names.append(channel_name(self.edge, channel)[:channel.name_size])
        return names

    def queue(self, uint32_t conn, bytes data):
        """Queue bytes through the arena; the status of the outbox."""
        return answer_raw(self.edge, self.at(conn), <const uint8_t *> <const char *> data, len(data))

    def send(self, uint32_t conn):
        """Send what is queued; the status of the outbox."""
        return outbox_send(self.edge, self.at(conn))

    def settle(self, uint32_t conn):
        outbox_settle(self.edge, self.at(conn))

    def rest(self):
        """The end of a turn for the arenas."""
        cdef int form
        for form in range(FORM_COUNT):
            arena_rest(&self.edge.arenas[form], self.edge.ledger, True)

    def queued(self, uint32_t conn):
        """(bytes by the connection's own count, lengths of its segments)."""
        lengths = []
        cdef Segment *segment = self.at(conn).out_head
        while segment != NULL:
            lengths.append(segment.length)
            segment = segment.next
        return self.at(conn).queued_bytes, lengths


def took(Stats stats, int time, uint64_t ms):
    """Count a time."""
    ledger_time(&stats.ledger, time, ms)


def failed(Stats stats, int code):
    """Count a request that was answered by ERROR."""
    ledger_error(&stats.ledger, code)
