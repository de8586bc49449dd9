"""ZMTP: the words of the handshake, and a Python face for the tests."""

from libc.string cimport memcmp, strlen


cdef int zmtp_greeting_check(const uint8_t *data) noexcept nogil:
    """Whether a greeting of 64 bytes is one that this side can go on with: 0, or ZMTP_BROKEN."""
    if data[0] != 0xFF or not data[9] & 1 or data[10] < 3:
        return ZMTP_BROKEN
    return 0 if memcmp(data + 12, b"NULL\0", 5) == 0 else ZMTP_BROKEN


cdef uint32_t _property(uint8_t *out, const char *name, const uint8_t *value, uint32_t size) noexcept nogil:
    """One name and value of a command's metadata; its bytes."""
    cdef uint32_t name_size = <uint32_t> strlen(name)
    out[0] = <uint8_t> name_size
    memcpy(out + 1, name, name_size)
    out[1 + name_size] = 0
    out[2 + name_size] = 0
    out[3 + name_size] = <uint8_t> (size >> 8)
    out[4 + name_size] = <uint8_t> size
    memcpy(out + 5 + name_size, value, size)
    return 5 + name_size + size


cdef uint32_t _command(uint8_t *out, uint32_t size) noexcept nogil:
    """Put the header in front of a command whose body of `size` bytes stands at out + 9; the bytes of both."""
    zmtp_long_header_write(out, size)
    out[0] = ZMTP_COMMAND | ZMTP_LONG
    return size + ZMTP_HEADER_BYTES_MAX


cdef uint32_t zmtp_ready_write(uint8_t *out, const char *kind, const uint8_t *identity,
                               uint32_t identity_size) noexcept nogil:
    """READY of a socket of `kind` ("DEALER", "ROUTER") into ZMTP_COMMAND_BYTES_MAX bytes; the bytes written."""
    cdef uint8_t *body = out + ZMTP_HEADER_BYTES_MAX
    cdef uint32_t size = 6
    memcpy(body, b"\x05READY", 6)
    size += _property(body + size, b"Socket-Type", <const uint8_t *> kind, <uint32_t> strlen(kind))
    size += _property(body + size, b"Identity", identity, identity_size)
    return _command(out, size)


cdef int zmtp_ready_read(const uint8_t *data, uint32_t size, const uint8_t **identity,
                         uint32_t *identity_size) noexcept nogil:
    """The identity in the body of a READY, a view into it, empty if it names none; ZMTP_BROKEN: not a READY."""
    cdef uint32_t place = 6
    cdef uint32_t name_size, value_size
    cdef const uint8_t *name
    identity_size[0] = 0
    identity[0] = data
    if size < 6 or memcmp(data, b"\x05READY", 6) != 0:
        return ZMTP_BROKEN
    while place < size:
        name_size = data[place]
        name = data + place + 1
        if size - place < 5 + name_size:
            return ZMTP_BROKEN
        place += 5 + name_size
        value_size = (<uint32_t> data[place - 4] << 24) | (<uint32_t> data[place - 3] << 16) \
            | (<uint32_t> data[place - 2] << 8) | data[place - 1]
        if value_size > size - place:
            return ZMTP_BROKEN
        if name_size == 8 and memcmp(name, b"Identity", 8) == 0:
            if value_size > ZMTP_IDENTITY_BYTES_MAX:
                return ZMTP_BROKEN
            identity[0] = data + place
            identity_size[0] = value_size
        place += value_size
    return 0


cdef uint32_t zmtp_pong_write(uint8_t *out, const uint8_t *ping, uint32_t size) noexcept nogil:
    """The answer to a PING command (its context of at most 16 bytes is echoed); 0: the command is no PING."""
    cdef uint32_t context
    if size < 7 or size > 7 + 16 or memcmp(ping, b"\x04PING", 5) != 0:
        return 0
    context = size - 7          # behind the name and a time to live of two bytes
    memcpy(out + ZMTP_HEADER_BYTES_MAX, b"\x04PONG", 5)
    memcpy(out + ZMTP_HEADER_BYTES_MAX + 5, ping + 7, context)
    return _command(out, 5 + context)


def frame(bytes data):
    """(flags, header bytes, body bytes) of the frame that `data` begins with; None: more is wanted.

    Raises:
        ValueError: this is no frame.
    """
    cdef ZmtpFrame found
    cdef int got = zmtp_frame_read(data, len(data), &found)
    if got < 0:
        raise ValueError("not a ZMTP frame")
    return (found.flags, found.header, found.size) if got else None


def greeting():
    """The greeting that this side says."""
    cdef uint8_t out[ZMTP_GREETING_BYTES]
    zmtp_greeting_write(out)
    return (<char *> out)[:ZMTP_GREETING_BYTES]


def greeting_accepted(bytes data):
    """Whether a peer's greeting is accepted."""
    return len(data) == ZMTP_GREETING_BYTES and zmtp_greeting_check(data) == 0


def ready(bytes kind, bytes identity):
    """A READY command."""
    cdef uint8_t out[ZMTP_COMMAND_BYTES_MAX]
    if len(identity) > ZMTP_IDENTITY_BYTES_MAX:
        raise ValueError(f"an identity has at most {ZMTP_IDENTITY_BYTES_MAX} bytes")
    return (<char *> out)[:zmtp_ready_write(out, kind, identity, len(identity))]


def ready_identity(bytes body):
    """The identity in the body of a READY.

    Raises:
        ValueError: it is no READY.
    """
    cdef const uint8_t *identity
    cdef uint32_t size
    if zmtp_ready_read(body, len(body), &identity, &size) < 0:
        raise ValueError("not a READY command")
    return (<const char *> identity)[:size]


def pong(bytes body):
    """The answer to the body of a PING command, or None."""
    cdef uint8_t out[64]
    cdef uint32_t size = zmtp_pong_write(out, body, len(body))
    return (<char *> out)[:size] if size else None
