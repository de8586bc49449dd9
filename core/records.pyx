"""Records: a Python face for peers of the router that are no workers (the admin API), and for the tests."""

from libc.string cimport memcpy

from core.batch cimport batch_free
from core.shards cimport SHARDS_MAX, shard_of_session, shards_add

VERSION = RECORDS_VERSION
LINK = REC_LINK
LINKED = REC_LINKED
BEGIN = REC_BEGIN
END = REC_END
BYE = REC_BYE
SUBSCRIBE = REC_SUBSCRIBE
SUBSCRIBED = REC_SUBSCRIBED
UNSUBSCRIBE = REC_UNSUBSCRIBE
OPEN = REC_OPEN
OPENED = REC_OPENED
CLOSE = REC_CLOSE
EVICT = REC_EVICT
PUBLISH = REC_PUBLISH
PUBLISHED = REC_PUBLISHED
HISTORY = REC_HISTORY
PRESENCE = REC_PRESENCE
REPLY = REC_REPLY
MESSAGE = REC_MESSAGE
TAKEN = REC_TAKEN
STATE = REC_STATE
CATCHUP = REC_CATCHUP
OUTCOME_ALONE = CATCHUP_OUTCOME
FROM_CURSOR = CATCHUP_CURSOR
FROM_LISTING = CATCHUP_LISTED
FROM_STORE = CATCHUP_STORED
CAUGHT = REC_CAUGHT
BAN = REC_BAN
BANS = REC_BANS
SESSIONS = REC_SESSIONS
SURVEY = REC_SURVEY
GLOBAL = REC_GLOBAL
LEADS = REC_LEADS
SHARDS = REC_SHARDS
ATTEND = REC_ATTEND
SAID = SHARDS_SAID
ELSEWHERE = SHARDS_ELSEWHERE
FEEDS = LEADS_FEEDS
TOLD_GLOBALS = SHARDS_BEFORE
GONE = GLOBAL_GONE
FRESH = LINK_FRESH
BESIDE = BEGIN_BESIDE
EVERYBODY = BEGIN_EVERYBODY
BEFORE = BEGIN_BEFORE
AS_IS = SURVEY_AS_IS
POSITION = SURVEY_POSITION
MESSAGES = SURVEY_MESSAGES
JOINED = STATE_JOINED
HERE = STATE_HERE
LEFT = STATE_LEFT
ACKED = STATE_ACKED
HEARS = STATE_HEARS
LISTS = STATE_LISTS
RESUMES = OPEN_RESUME
AGAIN = OPEN_AGAIN
OVER = CLOSE_OVER
OPENS_TOLD = OPEN_TOLD
CLOSES_TOLD = CLOSE_TOLD
STATES_TOLD = STATE_TOLD
TOLD = REC_TOLD
ALIVE = OPEN_ALIVE
CLAIM_BITS = FENCE_BITS
CURSORS = ("read", "not_kept", "away")  # by CursorState
OUTCOMES = ("live", "replayed", "gap", "reset")


cdef class BatchWriter:
    """Builds one batch; `take` gives its bytes and starts the next."""

    cdef Batch batch

    def __cinit__(self):
        self.batch.bytes_max = 1 << 26

    def __dealloc__(self):
        batch_free(&self.batch)

    cdef uint8_t *add(self, int kind, int aux, uint32_t fixed, uint32_t variable) except NULL:
        cdef uint8_t *record = record_add(&self.batch, kind, aux, fixed, variable)
        if record == NULL:
            raise BufferError("the batch is full")
        return record

    def link(self, int kind, uint64_t epoch, uint32_t worker, int aux=0, uint64_t now_ms=0,
             uint32_t version=RECORDS_VERSION):
        """LINK, BEGIN, END or BYE."""
        cdef RecLink *record = <RecLink *> self.add(kind, aux, sizeof(RecLink), 0)
        record.epoch = epoch
        record.version = version
        record.worker = worker
        record.stored_ms = now_ms

    def channel(self, int kind, bytes name, uint64_t channel, uint64_t epoch=0, uint64_t offset=0, *, int shard=0):
        """SUBSCRIBE or UNSUBSCRIBE."""
        cdef RecChannel *record = <RecChannel *> self.add(kind, len(name), sizeof(RecChannel), len(name))
        record.head.shard = shard
        record.channel = channel
        record.epoch = epoch
        record.offset = offset
        memcpy(<uint8_t *> record + sizeof(RecChannel), <const char *> name, len(name))

    def session(self, int kind, bytes session, uint64_t conn, uint32_t seq=0, int aux=0, bytes body=b"",
                uint64_t time_us=0, uint64_t fence=0, *, int shards=SHARDS_MAX):
        """OPEN or CLOSE, where there are so many shards."""
        cdef RecSession *record = <RecSession *> self.add(kind, aux, sizeof(RecSession), len(body))
        record.head.shard = shard_of_session(<const uint8_t *> <const char *> session, shards)
        record.conn = conn
        record.seq = seq
        record.body_size = len(body)
        record.time_us = time_us
        record.fence = fence
        memcpy(record.session, <const char *> session, 16)
        memcpy(<uint8_t *> record + sizeof(RecSession), <const char *> body, len(body))

    def state(self, bytes session, int what, bytes name, uint64_t epoch, uint64_t offset, bytes user=b"",
              uint32_t conn=0, uint64_t time_us=0, uint64_t fence=0, *, int kind=REC_STATE, shard=None):
        """STATE: what a session did in a channel; or ATTEND, with the channel's shard."""
        cdef RecState *record = <RecState *> self.add(kind, len(name), sizeof(RecState), len(name) + len(user))
        record.head.shard = session[0] if shard is None else shard
        record.what = what
        record.user_size = len(user)
        record.conn = conn
        record.time_us = time_us
        record.fence = fence
        record.epoch = epoch
        record.offset = offset
        memcpy(record.session, <const char *> session, 16)
        memcpy(<uint8_t *> record + sizeof(RecState), <const char *> name, len(name))
        memcpy(<uint8_t *> record + sizeof(RecState) + len(name), <const char *> user, len(user))

    def publish(self, uint32_t seq, bytes name, bytes data, bytes sender, bytes key=b"", *, bint again=False,
                int shard=0):
        """PUBLISH of MessagePack `data`; a seq of 0 asks for no answer; `again`: it may have been ordered already."""
        cdef RecPublish *record = <RecPublish *> self.add(
            REC_PUBLISH, len(name), sizeof(RecPublish), len(name) + len(key) + len(sender) + len(data))
        cdef uint8_t *place = <uint8_t *> record + sizeof(RecPublish)
        record.head.shard = shard
        record.seq = seq
        record.data_size = len(data)
        record.key_size = len(key)
        record.sender_size = len(sender)
        record.flags = PUBLISH_AGAIN if again else 0
        for part in (name, key, sender, data):
            memcpy(place, <const char *> part, len(part))
            place += len(part)

    def history(self, int kind, uint32_t seq, bytes name, *, int limit=100, bint reverse=False, since=None,
                uint32_t bytes_max=65536, int shard=0):
        """HISTORY, PRESENCE or SURVEY."""
        cdef RecHistory *record = <RecHistory *> self.add(kind, len(name), sizeof(RecHistory), len(name))
        record.head.shard = shard
        record.seq = seq
        record.limit = limit
        record.reverse = reverse
        record.bytes_max = bytes_max
        if since is not None:
            record.has_since = 1
            record.since_epoch, record.since_offset = since
        memcpy(<uint8_t *> record + sizeof(RecHistory), <const char *> name, len(name))

    def catchup(self, uint32_t seq, bytes name, uint64_t channel, uint64_t epoch, uint64_t offset, *,
                uint32_t flags=0, uint32_t bytes_max=32768, int shard=0):
        """CATCHUP from a position."""
        cdef RecCatchup *record = <RecCatchup *> self.add(REC_CATCHUP, len(name), sizeof(RecCatchup), len(name))
        record.head.shard = shard
        record.seq = seq
        record.channel = channel
        record.since_epoch = epoch
        record.since_offset = offset
        record.flags = flags
        record.bytes_max = bytes_max
        memcpy(<uint8_t *> record + sizeof(RecCatchup), <const char *> name, len(name))

    def body(self, int kind, bytes body, uint32_t seq=0):
        """BAN or SESSIONS."""
        cdef RecBody *record = <RecBody *> self.add(kind, 0, sizeof(RecBody), len(body))
        record.seq = seq
        record.body_size = len(body)
        memcpy(<uint8_t *> record + sizeof(RecBody), <const char *> body, len(body))

    def shards(self, shards, *, bint said=False, bint before=False, bint elsewhere=False):
        """SHARDS: what follows is all of these, or with `said`, that was all."""
        cdef RecShards *record = <RecShards *> self.add(
            REC_SHARDS, (SHARDS_SAID if said else 0) | (SHARDS_BEFORE if before else 0)
            | (SHARDS_ELSEWHERE if elsewhere else 0), sizeof(RecShards), 0)
        cdef uint32_t shard
        for shard in shards:
            shards_add(record.which, shard)

    def take(self):
        """The batch so far, as bytes."""
        taken = (<char *> self.batch.data)[:self.batch.size] if self.batch.size else b""
        self.batch.size = 0
        return taken


cdef _caught(const RecCaught *record):
    cdef const char *place = <const char *> record + sizeof(RecCaught)
    cdef const Caught *caught
    messages = []
    for _ in range(record.count):
        caught = <const Caught *> place
        messages.append((caught.offset, (place + sizeof(Caught))[:caught.size]))
        place += sizeof(Caught) + ((caught.size + 7) & ~(<uint32_t> 7))
    return {"channel": record.channel, "seq": record.seq, "position": (record.epoch, record.offset),
            "last": (record.last_epoch, record.last_offset), "gap": (record.gap_from, record.gap_to),
            "outcome": record.outcome, "cursor": record.cursor, "gap_reason": record.gap_reason,
            "messages": messages}


cdef _unpack(const Record *head):
    cdef const char *rest
    fields = {"kind": head.kind, "aux": head.aux}
    if head.kind <= REC_BYE:
        fields.update(epoch=(<RecLink *> head).epoch, version=(<RecLink *> head).version,
                      stored_ms=(<RecLink *> head).stored_ms)
    elif head.kind <= REC_UNSUBSCRIBE:
        fields.update(channel=(<RecChannel *> head).channel, epoch=(<RecChannel *> head).epoch,
                      offset=(<RecChannel *> head).offset)
    elif head.kind <= REC_EVICT:
        rest = <const char *> head + sizeof(RecSession)
        fields.update(conn=(<RecSession *> head).conn, seq=(<RecSession *> head).seq,
                      session=(<RecSession *> head).session[:16], fence=(<RecSession *> head).fence,
                      body=rest[:(<RecSession *> head).body_size])
    elif head.kind == REC_PUBLISHED:
        fields.update(seq=(<RecPublished *> head).seq, epoch=(<RecPublished *> head).epoch,
                      offset=(<RecPublished *> head).offset)
    elif head.kind == REC_REPLY or head.kind == REC_BAN or head.kind == REC_BANS:
        rest = <const char *> head + sizeof(RecBody)
        fields.update(seq=(<RecBody *> head).seq, body=rest[:(<RecBody *> head).body_size])
    elif head.kind == REC_MESSAGE:
        rest = <const char *> head + sizeof(RecMessage)
        fields.update(channel=(<RecMessage *> head).channel, epoch=(<RecMessage *> head).epoch,
                      offset=(<RecMessage *> head).offset, body=rest[:(<RecMessage *> head).body_size])
    elif head.kind == REC_CAUGHT:
        fields.update(_caught(<RecCaught *> head))
    elif head.kind == REC_GLOBAL:
        rest = <const char *> head + sizeof(RecChannel)
        fields.update(channel=(<RecChannel *> head).channel, epoch=(<RecChannel *> head).epoch,
                      offset=(<RecChannel *> head).offset, name=rest[:head.aux])
    elif head.kind == REC_LEADS:
        fields.update(shard=head.shard, epoch=(<RecLeads *> head).epoch)
    elif head.kind == REC_TAKEN:
        fields.update(count=(<RecTaken *> head).count, others=(<RecTaken *> head).others)
    return fields


def unpack(bytes batch):
    """The records of a batch from the router, each as a dict with `kind`, `aux` and the fields of its struct.

    Raises:
        ValueError: the bytes are no batch.
    """
    cdef const uint8_t *data = <const uint8_t *> <const char *> batch
    cdef size_t size = len(batch)
    cdef size_t place = 0
    records = []
    while place < size:
        if not record_fits(<const Record *> (data + place), size - place):
            raise ValueError(f"no whole record at byte {place} of {size}")
        records.append(_unpack(<const Record *> (data + place)))
        place += (<const Record *> (data + place)).size
    return records
