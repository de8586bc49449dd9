# Ordering: a PUBLISH becomes a message with a position, in two halves.
#
# `publish_order` gives the position. Where the namespace does not wait for the log, the message is delivered and
# answered in the same step, and logged behind; where it does, `log_committed` does that when its batch is in the log,
# in the order of the log. So nothing is delivered that a crash could take back (docs/adr/0085-delivery-at-commit.md).
# Who repeats a publish is answered with its first position, at the commit if that is still to come. Where another
# region is to have the message as well, the answer alone waits for that (core/replicating.pxd).

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.keys cimport KeyName
from core.log_records cimport LogRecord
from core.records cimport RecPublish
from core.sequencer cimport Sequencer, Worker
from core.stream cimport Stored, Stream

cdef void publish_order(Sequencer *sequencer, Worker *worker, RecPublish *record) noexcept nogil
cdef void message_deliver(Sequencer *sequencer, Stream *stream, const Stored *head, const uint8_t *body) noexcept nogil
cdef void log_hand_over(Sequencer *sequencer) noexcept nogil
cdef void log_committed(Sequencer *sequencer, uint64_t number) noexcept nogil
cdef void origin_name(Sequencer *sequencer, uint64_t start, uint32_t number, uint32_t seq,
                      KeyName *name) noexcept nogil
