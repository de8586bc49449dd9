"""Notes: the numbers of what the two threads of a process say to each other, and the control thread's side of it."""

from libc.stdint cimport uint8_t, uint32_t

from core cimport mailbox
from core.batch cimport Batch, batch_clear
from core.mailbox cimport mailbox_drain, mailbox_put

FRAME = mailbox.NOTE_FRAME
LINKED = mailbox.NOTE_LINKED
STOPPED = mailbox.NOTE_STOPPED
LISTED = mailbox.NOTE_LISTED
SETTLE = mailbox.NOTE_SETTLE
AUDITED = mailbox.NOTE_AUDITED
OPEN = mailbox.NOTE_OPEN
SEND = mailbox.NOTE_SEND
FIN = mailbox.NOTE_FIN
HISTORY = mailbox.NOTE_HISTORY
PRESENCE = mailbox.NOTE_PRESENCE
DRAIN = mailbox.NOTE_DRAIN
STOP = mailbox.NOTE_STOP
LIST = mailbox.NOTE_LIST
RECLAIM = mailbox.NOTE_RECLAIM
DRAIN_SENT = mailbox.NOTE_DRAIN_SENT
TAKEN = mailbox.NOTE_TAKEN
DRAIN_STEP = mailbox.NOTE_DRAIN_STEP
SETTLED = mailbox.NOTE_SETTLED
AUDIT = mailbox.NOTE_AUDIT
LOG_BATCH = mailbox.NOTE_LOG_BATCH
LOG_LOAD = mailbox.NOTE_LOG_LOAD
LOG_KEPT = mailbox.NOTE_LOG_KEPT
SESSION_OPEN = mailbox.NOTE_SESSION_OPEN
SESSION_STATE = mailbox.NOTE_SESSION_STATE
SESSION_TOLD = mailbox.NOTE_SESSION_TOLD
CURSOR = mailbox.NOTE_CURSOR
SESSIONS = mailbox.NOTE_SESSIONS
LOG_COMMITTED = mailbox.NOTE_LOG_COMMITTED
LOG_STATE = mailbox.NOTE_LOG_STATE
LOG_LOADED = mailbox.NOTE_LOG_LOADED
LOG_SIFT = mailbox.NOTE_LOG_SIFT
SESSION_OPENED = mailbox.NOTE_SESSION_OPENED
CURSOR_READ = mailbox.NOTE_CURSOR_READ
SESSIONS_READ = mailbox.NOTE_SESSIONS_READ
BAN = mailbox.NOTE_BAN
BANS = mailbox.NOTE_BANS
FOREIGN = mailbox.NOTE_FOREIGN
REFRESH = mailbox.NOTE_REFRESH
BANS_SAY = mailbox.NOTE_BANS_SAY
SESSIONS_STORED = mailbox.NOTE_SESSIONS_STORED
TOLD_END = mailbox.NOTE_TOLD_END
DRAINED = mailbox.NOTE_DRAINED
FORGOTTEN = mailbox.NOTE_FORGOTTEN
CLAIM = mailbox.NOTE_CLAIM
BEGAN = mailbox.NOTE_BEGAN
LINK_CLOSED = mailbox.NOTE_LINK_CLOSED
ABROAD = mailbox.NOTE_ABROAD
LEAD = mailbox.NOTE_LEAD
PAUSE = mailbox.NOTE_PAUSE
SHARD_DRAIN = mailbox.NOTE_SHARD_DRAIN
FORGET = mailbox.NOTE_FORGET
FOLLOW = mailbox.NOTE_FOLLOW
HOLD = mailbox.NOTE_HOLD
FOLLOWED = mailbox.NOTE_FOLLOWED
REPLICATED = mailbox.NOTE_REPLICATED
LOG_RECOVER = mailbox.NOTE_LOG_RECOVER
CLAIMED = mailbox.NOTE_CLAIMED
EVICT = mailbox.NOTE_EVICT
LINK_OPEN = mailbox.NOTE_LINK_OPEN
LINK_CLOSE = mailbox.NOTE_LINK_CLOSE

OPEN_DEVICE = mailbox.OPEN_DEVICE
OPEN_RESUMES = mailbox.OPEN_RESUMES
OPEN_TELLS_UNREAD = mailbox.OPEN_TELLS_UNREAD
OPEN_WHOLE = mailbox.OPEN_WHOLE
OPEN_IF_ALIVE = mailbox.OPEN_IF_ALIVE


cdef list notes_take(Mailbox *box):
    """All notes so far: [(kind, flags, conn, request, first, second, session, text, extra), ...]."""
    cdef Batch *batch
    cdef uint32_t place = 0
    cdef Note *note
    cdef char *text
    notes = []
    with nogil:
        batch = mailbox_drain(box)
    while place < batch.size:
        note = <Note *> (batch.data + place)
        text = <char *> note + sizeof(Note)
        notes.append((note.kind, note.flags, note.conn, note.request, note.first, note.second, note.session[:16],
                      text[:note.text_size], (text + note.text_size)[:note.extra_size]))
        place += note.size
    batch_clear(batch)
    return notes


cdef notes_put(Mailbox *box, Note *note, bytes text, bytes extra):
    """Add one note with its two texts.

    Raises:
        BufferError: the mailbox is full.
    """
    note.text_size = len(text)
    note.extra_size = len(extra)
    if mailbox_put(box, note, <const uint8_t *> <const char *> text, <const uint8_t *> <const char *> extra) < 0:
        raise BufferError("the mailbox to the data plane is full")
