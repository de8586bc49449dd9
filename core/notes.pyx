"""Notes: the numbers of what the two threads of a worker say to each other."""

from core cimport mailbox

FRAME = mailbox.NOTE_FRAME
PRESENCE_EXPECT = mailbox.NOTE_PRESENCE_EXPECT
PRESENCE_PART = mailbox.NOTE_PRESENCE_PART
LINKED = mailbox.NOTE_LINKED
STOPPED = mailbox.NOTE_STOPPED
LISTED = mailbox.NOTE_LISTED
SETTLE = mailbox.NOTE_SETTLE
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
