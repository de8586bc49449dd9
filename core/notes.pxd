# Notes: how the control thread takes notes out of a mailbox and puts them in, as Python sees them.

from core.mailbox cimport Mailbox, Note


cdef list notes_take(Mailbox *box)
cdef notes_put(Mailbox *box, Note *note, bytes text, bytes extra)
