# A log batch as commands for Redis: one for each shard that has a part in it, in the bytes that are sent.
#
# Where one router has the log, a shard is known from a channel's CRC-32, as zlib has it; where several write it, the
# shard is the record's own (core/shards.pxd), and its epoch is in that of the record. Its command is an EVALSHA of the
# script in router/log/redis_scripts.py: the records in their order, those of a channel that follow each other with one
# key, and beside them their tail: for each record who published it under which key, packed, since the next router needs
# that of all records of the last minutes and nothing else of them.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum TailFlag:
    TAIL_KEY = 1        # name of the idempotency key follows: high, low
    TAIL_ORIGIN = 2     # origin follows: epoch, worker, request

cdef packed struct TailHead:    # 26 bytes; then the name, then what the flags say
    uint8_t flags
    uint8_t name_size
    uint64_t epoch
    uint64_t offset
    uint64_t time_ms

cdef packed struct TailKey:     # 16 bytes
    uint64_t high
    uint64_t low

cdef packed struct TailOrigin:  # 16 bytes
    uint64_t epoch
    uint32_t worker
    uint32_t seq

cdef struct Part:               # a record of the batch, in its shard
    uint32_t at                 # in the batch
    uint32_t next               # the shard's next one, 0: none; from 1

cdef struct Cut:                # what one shard has of the batch
    uint32_t first              # its records, from 1
    uint32_t last
    uint32_t records
    uint32_t runs               # of records of one channel that follow each other
    uint32_t keys_bytes         # the tail's, of records with a key
    uint32_t tail_bytes         # and of those without
    uint64_t room               # bytes that the command needs at most

cdef struct Text:               # borrowed from the entry of a bridge that is read
    const uint8_t *data
    uint64_t size

cdef struct Refreshed:          # a channel whose key was told lately when to expire
    uint64_t hash               # FNV-1a of its name
    uint64_t minute             # since 1970, of the record with which it was told

cdef enum:
    REFRESH_SLOTS = 65536       # 1 MiB: one place a hash, so that two channels may push each other out, no more
    REFRESH_MINUTES = 60        # to be small beside the day by which a key outlives its messages (redis_keys.py)

cdef uint32_t crc32(const uint8_t *data, uint32_t size) noexcept nogil
