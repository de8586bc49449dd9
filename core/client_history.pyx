"""Client history: what is asked for, and what is made of the answer."""

from libc.stdint cimport uint8_t
from libc.string cimport memcmp, strlen

from core.answers cimport TYPE_HISTORY, TYPE_MESSAGE, write_text
from core.client cimport (CLIENT_CAUGHT_UP, CLIENT_CORRUPT, CLIENT_HISTORIES, CLIENT_LOST, CLIENT_REQUEST_CATCH_UP,
                          CLIENT_REQUEST_HISTORY, TIME_HISTORY, ClientChannel, channel_hold, client_channel,
                          client_count, client_time, member_of)
from core.client_out cimport client_ask, client_send_body
from core.mpack cimport (MP_OK, MpWriter, mp_read_array, mp_read_bin, mp_read_map, mp_read_str, mp_read_uint, mp_skip,
                         mp_write_array, mp_write_map, mp_write_raw, mp_write_str, mp_write_uint)
from core.stamp cimport Stamp, stamp_read

cdef enum:
    PAGE_MESSAGES = 256         # asked for at once; a frame's bound may make a page shorter


cdef bint client_map_find(MpReader *reader, const char *key) noexcept nogil:
    cdef MpReader at = reader[0]
    cdef uint32_t count, size
    cdef const char *name
    cdef uint32_t key_size = <uint32_t> strlen(key)
    if mp_read_map(&at, &count) != MP_OK:
        return False
    while count:
        count -= 1
        if mp_read_str(&at, &name, &size) != MP_OK:
            return False
        if size == key_size and memcmp(name, key, size) == 0:
            reader[0] = at
            return True
        if mp_skip(&at) != MP_OK:
            return False
    return False


cdef uint64_t client_map_uint(const MpReader *reader, const char *key, uint64_t missing) noexcept nogil:
    cdef MpReader at = reader[0]
    cdef uint64_t value
    return value if client_map_find(&at, key) and mp_read_uint(&at, &value) == MP_OK else missing


cdef void history_ask(Client *client, ClientConn *conn, const char *name, uint32_t size,
                      uint32_t limit) noexcept nogil:
    cdef MpWriter writer
    if client_ask(client, conn, &writer, 4, TYPE_HISTORY, CLIENT_REQUEST_HISTORY,
                  channel_hold(client, name, size)) == NULL:
        return
    mp_write_str(&writer, name, size)
    mp_write_map(&writer, 2)
    write_text(&writer, b"limit")
    mp_write_uint(&writer, limit)
    write_text(&writer, b"reverse")
    mp_write_raw(&writer, b"\xc3", 1)
    client_send_body(client, conn, &writer)


cdef void history_catch_up(Client *client, ClientConn *conn, uint32_t channel, uint64_t epoch, uint64_t since,
                           uint64_t until) noexcept nogil:
    cdef MpWriter writer
    cdef ClientChannel *of = client_channel(client, channel)
    cdef ClientRequest *request = client_ask(client, conn, &writer, 4, TYPE_HISTORY, CLIENT_REQUEST_CATCH_UP,
                                             channel_hold(client, of.name, of.name_size))
    if request == NULL:
        client_count(client, CLIENT_LOST, until - since)
        return
    request.since = since
    request.until = until
    mp_write_str(&writer, of.name, of.name_size)
    mp_write_map(&writer, 2)
    write_text(&writer, b"since")
    mp_write_array(&writer, 2)
    mp_write_uint(&writer, epoch)
    mp_write_uint(&writer, since)
    write_text(&writer, b"limit")
    mp_write_uint(&writer, PAGE_MESSAGES)
    client_send_body(client, conn, &writer)


cdef bint _message(Client *client, ClientRequest *request, MpReader *reader) noexcept nogil:
    """One kept MESSAGE; False: it is none, and nothing behind it can be read."""
    cdef uint32_t parts, name_size, data_size
    cdef uint64_t kind = 0
    cdef uint64_t offset = 0
    cdef const char *name
    cdef const char *data
    cdef Stamp stamp
    cdef MpReader at = reader[0]
    if mp_skip(reader) != MP_OK or mp_read_array(&at, &parts) != MP_OK or mp_read_uint(&at, &kind) != MP_OK \
            or kind != TYPE_MESSAGE or mp_read_str(&at, &name, &name_size) != MP_OK \
            or mp_read_uint(&at, &offset) != MP_OK:
        return False
    if offset <= request.since or offset > request.until:
        return True
    client_count(client, CLIENT_LOST, offset - request.since - 1)
    client_count(client, CLIENT_CAUGHT_UP, 1)
    request.since = offset
    if mp_read_bin(&at, &data, &data_size) != MP_OK or not stamp_read(<const uint8_t *> data, data_size, &stamp):
        client_count(client, CLIENT_CORRUPT, 1)
    return True


cdef void history_on_reply(Client *client, ClientConn *conn, ClientRequest *request, MpReader *options) noexcept nogil:
    cdef MpReader at = options[0]
    cdef uint32_t count = 0
    cdef uint64_t before = request.since
    client_count(client, CLIENT_HISTORIES, 1)
    client_time(client, TIME_HISTORY, client.now_ns - request.started_ns if client.now_ns > request.started_ns else 0)
    if request.kind != CLIENT_REQUEST_CATCH_UP:
        return
    if client_map_find(&at, b"messages") and mp_read_array(&at, &count) != MP_OK:
        count = 0
    while count and _message(client, request, &at):
        count -= 1
    if request.since == request.until:
        return
    if request.since == before:
        history_on_refusal(client, conn, request)
    else:
        history_catch_up(client, conn, request.channel, client_map_uint(options, b"epoch", 0), request.since,
                         request.until)


cdef bint history_on_refusal(Client *client, ClientConn *conn, ClientRequest *request) noexcept nogil:
    if request.kind != CLIENT_REQUEST_CATCH_UP:
        return True
    if member_of(conn, request.channel) == NULL:
        return False
    client_count(client, CLIENT_LOST, request.until - request.since)
    return True
