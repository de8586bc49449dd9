"""Bans: what the router's data plane does about them."""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from core.batch cimport batch_clear, batch_write
from core.mailbox cimport NOTE_BAN, mailbox_put, note_init
from core.records cimport BANS_ALL, REC_BANS, record_add
from core.sequencer cimport WORKER_LINKED


cdef void bans_asked(Sequencer *sequencer, RecBody *record) noexcept nogil:
    """BAN: the control thread decides. When its mailbox is full, whoever asked hears nothing and asks again."""
    cdef Note note
    note_init(&note, NOTE_BAN)
    note.text_size = record.body_size
    mailbox_put(&sequencer.to_control, &note, <uint8_t *> record + sizeof(RecBody), NULL)


cdef void _say(Worker *worker, int aux, const uint8_t *body, uint32_t size) noexcept nogil:
    """BANS; without room for it the worker is given up, and told everything when it links again."""
    cdef RecBody *record = <RecBody *> record_add(&worker.out, REC_BANS, aux, sizeof(RecBody), size)
    if record == NULL:
        worker.overfull = True
        return
    record.body_size = size
    memcpy(<uint8_t *> record + sizeof(RecBody), body, size)


cdef void bans_say_all(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """A worker has linked: what it knew may be another router's."""
    if sequencer.bans.size:
        _say(worker, BANS_ALL, sequencer.bans.data, sequencer.bans.size)


cdef void bans_take(Sequencer *sequencer, Note *note, const uint8_t *change, const uint8_t *all_) noexcept nogil:
    """BANS_SAY: tell the change, and keep the whole for those that link later."""
    cdef uint32_t index
    batch_clear(&sequencer.bans)
    batch_write(&sequencer.bans, all_, note.extra_size)
    if note.text_size == 0:
        return
    for index in range(sequencer.worker_count):
        if sequencer.workers[index].state == WORKER_LINKED:
            _say(&sequencer.workers[index], 0, change, note.text_size)
