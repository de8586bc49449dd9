"""TLS: handshakes, records and the context, over the libssl of the operating system."""

import ssl      # also loads libssl, if this interpreter has it as a library
from pathlib import Path

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from core.conn cimport (FLAG_BLOCKED, FLAG_FINISHED, FLAG_WEBSOCKET, STAGE_FRAMES, STAGE_UPGRADE, Aside, conn_aside)
from core.buffer cimport Segment
from core.edge cimport RECEIVE_BYTES, edge_tick
from core.ledger cimport (COUNT_BAD_FRAMES, COUNT_BYTES_OUT, COUNT_SENDS, COUNT_TLS_FAILURES, COUNT_TLS_HANDSHAKES,
                          COUNT_TLS_RESUMED, KIND_TLS, ledger_acquire, ledger_count, ledger_leaks, ledger_release)
from core.outbox cimport OUTBOX_BLOCKED, OUTBOX_BROKEN, OUTBOX_SENT, outbox_consume, outbox_drop, outbox_touch
from core.ring cimport ring_lease, ring_read, ring_release, ring_size, ring_write
from core.sites cimport HERE
from core.slab cimport invariant
from core.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, send

cdef extern from "libssl.h" nogil:
    const void *TLS_server_method "libssl.TLS_server_method"()
    void *SSL_CTX_new "libssl.SSL_CTX_new"(const void *)
    void SSL_CTX_free "libssl.SSL_CTX_free"(void *)
    long SSL_CTX_ctrl "libssl.SSL_CTX_ctrl"(void *, int, long, void *)
    uint64_t SSL_CTX_set_options "libssl.SSL_CTX_set_options"(void *, uint64_t)
    void SSL_CTX_set_default_passwd_cb "libssl.SSL_CTX_set_default_passwd_cb"(
        void *, int (*)(char *, int, int, void *) noexcept nogil)
    int SSL_CTX_use_certificate_chain_file "libssl.SSL_CTX_use_certificate_chain_file"(void *, const char *)
    int SSL_CTX_use_PrivateKey_file "libssl.SSL_CTX_use_PrivateKey_file"(void *, const char *, int)
    int SSL_CTX_check_private_key "libssl.SSL_CTX_check_private_key"(const void *)
    void *SSL_new "libssl.SSL_new"(void *)
    void SSL_free "libssl.SSL_free"(void *)
    void SSL_set_accept_state "libssl.SSL_set_accept_state"(void *)
    void SSL_set_bio "libssl.SSL_set_bio"(void *, void *, void *)
    int SSL_do_handshake "libssl.SSL_do_handshake"(void *)
    int SSL_session_reused "libssl.SSL_session_reused"(const void *)
    int SSL_read "libssl.SSL_read"(void *, void *, int)
    int SSL_write "libssl.SSL_write"(void *, const void *, int)
    int SSL_shutdown "libssl.SSL_shutdown"(void *)
    int SSL_get_error "libssl.SSL_get_error"(const void *, int)
    void *BIO_meth_new "libssl.BIO_meth_new"(int, const char *)
    void BIO_meth_free "libssl.BIO_meth_free"(void *)
    int BIO_meth_set_read "libssl.BIO_meth_set_read"(void *, int (*)(void *, char *, int) noexcept nogil)
    int BIO_meth_set_write "libssl.BIO_meth_set_write"(void *, int (*)(void *, const char *, int) noexcept nogil)
    int BIO_meth_set_ctrl "libssl.BIO_meth_set_ctrl"(void *, long (*)(void *, int, long, void *) noexcept nogil)
    void *BIO_new "libssl.BIO_new"(const void *)
    void BIO_set_data "libssl.BIO_set_data"(void *, void *)
    void *BIO_get_data "libssl.BIO_get_data"(void *)
    void BIO_set_init "libssl.BIO_set_init"(void *, int)
    void BIO_set_flags "libssl.BIO_set_flags"(void *, int)
    void BIO_clear_flags "libssl.BIO_clear_flags"(void *, int)
    int BIO_free "libssl.BIO_free"(void *)
    void ERR_clear_error "libssl.ERR_clear_error"()
    unsigned long ERR_peek_error "libssl.ERR_peek_error"()
    const char *ERR_reason_error_string "libssl.ERR_reason_error_string"(unsigned long)
    const char *OpenSSL_version "libssl.OpenSSL_version"(int)
    const char *libssl_open(const char *)
    enum:
        LIBSSL_CTRL_MODE
        LIBSSL_CTRL_SESS_CACHE_MODE
        LIBSSL_CTRL_TICKET_KEYS
        LIBSSL_CTRL_MIN_VERSION
        LIBSSL_TLS_1_2
        LIBSSL_MODES
        LIBSSL_NO_COMPRESSION
        LIBSSL_SERVER_PREFERENCE
        LIBSSL_NO_RENEGOTIATION
        LIBSSL_FILETYPE_PEM
        LIBSSL_ERROR_WANT_READ
        LIBSSL_ERROR_ZERO_RETURN
        LIBSSL_BIO_RETRY_READ
        LIBSSL_BIO_RETRIES
        LIBSSL_BIO_TYPE
        LIBSSL_BIO_CTRL_FLUSH
        LIBSSL_TICKET_KEY_BYTES

TICKET_KEY_BYTES = LIBSSL_TICKET_KEY_BYTES
assert TLS_INPUT_BYTES + TLS_RECORD_BYTES + TLS_RECORD_MORE < RECEIVE_BYTES
assert TLS_SEND_BYTES < TLS_OUT_BYTES

cdef object _opened = None      # name of the library whose functions the table holds


# What OpenSSL calls to read and write. Both only copy: the system calls are made by our own loop.

cdef int _bio_read(void *bio, char *target, int size) noexcept nogil:
    cdef TlsContext *context = <TlsContext *> BIO_get_data(bio)
    BIO_clear_flags(bio, LIBSSL_BIO_RETRIES)
    if context.input_size == 0:
        BIO_set_flags(bio, LIBSSL_BIO_RETRY_READ)
        return -1
    if <uint32_t> size > context.input_size:
        size = <int> context.input_size
    memcpy(target, context.input, size)
    context.input += size
    context.input_size -= size
    return size


cdef int _bio_write(void *bio, const char *source, int size) noexcept nogil:
    """Beyond the buffer's end it fails for good: callers leave room for a record, and no handshake is that long."""
    cdef TlsContext *context = <TlsContext *> BIO_get_data(bio)
    BIO_clear_flags(bio, LIBSSL_BIO_RETRIES)
    if <uint32_t> size > TLS_OUT_BYTES - context.out_used:
        return -1
    memcpy(context.out + context.out_used, source, size)
    context.out_used += size
    return size


cdef long _bio_control(void *bio, int command, long number, void *pointer) noexcept nogil:
    """Nothing is buffered here, so a flush is always done; every other command is not known."""
    return 1 if command == LIBSSL_BIO_CTRL_FLUSH else 0


cdef int _no_passphrase(char *target, int size, int writing, void *user) noexcept nogil:
    """A worker has nobody to ask; OpenSSL's own way is to ask on the terminal."""
    return -1


cdef TlsConn *_conn_start(Edge *edge, Connection *conn) noexcept nogil:
    """The TLS state of a connection whose first bytes are here; NULL: out of memory."""
    cdef TlsContext *context = <TlsContext *> edge.tls
    cdef TlsConn *tls = <TlsConn *> calloc(1, sizeof(TlsConn))
    cdef void *bio = BIO_new(context.method)
    cdef Aside *aside = conn_aside(&edge.asides, edge.ledger, conn)
    if tls != NULL:
        tls.ssl = SSL_new(context.ctx)
    if tls == NULL or bio == NULL or tls.ssl == NULL or aside == NULL:
        if tls != NULL and tls.ssl != NULL:
            SSL_free(tls.ssl)
        if bio != NULL:
            BIO_free(bio)
        free(tls)
        return NULL
    BIO_set_data(bio, context)
    BIO_set_init(bio, 1)
    SSL_set_bio(tls.ssl, bio, bio)      # the SSL owns it from here on
    SSL_set_accept_state(tls.ssl)
    aside.tls = tls
    aside.kept = 1
    conn.flags |= FLAG_TLS
    ledger_acquire(edge.ledger, KIND_TLS, <size_t> tls, HERE)
    return tls


cdef void tls_conn_free(Edge *edge, Connection *conn) noexcept nogil:
    """Say close_notify if that can be done at once, and let go of everything."""
    cdef TlsContext *context = <TlsContext *> edge.tls
    cdef TlsConn *tls = tls_of(edge, conn)
    context.out_used = 0
    context.input_size = 0
    if tls.unsent == NULL and not conn.flags & FLAG_BLOCKED and _say_end(tls):
        send(conn.fd, context.out, context.out_used, MSG_NOSIGNAL | MSG_DONTWAIT)
    if tls.unsent != NULL:
        ring_release(&edge.rings, tls.unsent)
    if not ledger_leaks(edge.ledger, KIND_TLS):
        ledger_release(edge.ledger, KIND_TLS, <size_t> tls)
        SSL_free(tls.ssl)
        ERR_clear_error()
        free(tls)
    conn_aside_at(&edge.asides, conn).tls = NULL
    conn.flags &= ~FLAG_TLS


cdef bint _say_end(TlsConn *tls) noexcept nogil:
    """Write close_notify into the buffer, once; True: it stands there. Not allowed after a fatal error."""
    if not tls.ready or tls.broken or tls.told:
        return False
    tls.told = 1
    ERR_clear_error()
    if SSL_shutdown(tls.ssl) < 0:
        tls.broken = 1
        return False
    return True


cdef bint _keep(Edge *edge, TlsConn *tls, const uint8_t *rest, uint32_t size) noexcept nogil:
    """Put ciphertext behind what waits for the socket already; False: at the bound, or out of memory."""
    cdef uint32_t held = 0 if tls.unsent == NULL else ring_size(tls.unsent)
    cdef Ring *larger
    if held + size > TLS_OUT_BYTES:
        return False
    if tls.unsent == NULL or tls.unsent.capacity - held < size:
        larger = ring_lease(&edge.rings, held + size)
        if larger == NULL:
            return False
        if tls.unsent != NULL:
            ring_read(tls.unsent, larger.data, held)
            larger.written = held
            ring_release(&edge.rings, tls.unsent)
        tls.unsent = larger
    ring_write(tls.unsent, rest, size)
    return True


cdef int _send_out(Edge *edge, Connection *conn, TlsConn *tls) noexcept nogil:
    """One system call with the ciphertext in the buffer; what the socket does not take is kept."""
    cdef TlsContext *context = <TlsContext *> edge.tls
    cdef ssize_t sent
    while True:
        sent = send(conn.fd, context.out, context.out_used, MSG_NOSIGNAL | MSG_DONTWAIT)
        ledger_count(edge.ledger, COUNT_SENDS, 1)
        if sent >= 0 or errno != EINTR:
            break
    if sent < 0:
        if errno != EAGAIN:
            return OUTBOX_BROKEN
        sent = 0
    if sent > 0:
        ledger_count(edge.ledger, COUNT_BYTES_OUT, sent)
        conn.last_sent = edge_tick(edge)
        conn.blocked_since = conn.last_sent
    if <uint32_t> sent == context.out_used:
        return OUTBOX_SENT
    if not _keep(edge, tls, context.out + sent, context.out_used - <uint32_t> sent):
        return OUTBOX_BROKEN
    return OUTBOX_BLOCKED


cdef int _send_unsent(Edge *edge, Connection *conn, TlsConn *tls) noexcept nogil:
    """Try again with what the socket did not take the last time."""
    cdef TlsContext *context = <TlsContext *> edge.tls
    cdef Ring *ring = tls.unsent
    context.out_used = ring_read(ring, context.out, TLS_OUT_BYTES)
    invariant(ring_size(ring) == 0)
    tls.unsent = NULL
    ring_release(&edge.rings, ring)
    return _send_out(edge, conn, tls)


cdef uint32_t _gather(Connection *conn, uint8_t *record) noexcept nogil:
    """Copy the front of the queue into one record: 22 bytes and a cipher's start-up are cheaper once than each."""
    cdef Segment *segment = conn.out_head
    cdef uint32_t size = 0
    cdef uint32_t part
    while segment != NULL and size < TLS_RECORD_BYTES:
        part = min(segment.length, <uint32_t> TLS_RECORD_BYTES - size)
        memcpy(record + size, segment.shared.data + segment.offset, part)
        size += part
        segment = segment.next
    return size


cdef bint _encrypt(Edge *edge, Connection *conn, TlsConn *tls) noexcept nogil:
    """Turn the front of the queue into one record in the buffer; False: the connection is broken."""
    cdef TlsContext *context = <TlsContext *> edge.tls
    cdef Segment *segment = conn.out_head
    cdef const uint8_t *plain = segment.shared.data + segment.offset
    cdef uint32_t size = min(segment.length, <uint32_t> TLS_RECORD_BYTES)
    cdef int written
    if segment.next != NULL and size < TLS_RECORD_BYTES:
        size = _gather(conn, context.record)
        plain = context.record
    ERR_clear_error()
    written = SSL_write(tls.ssl, plain, <int> size)
    if written <= 0:
        tls.broken = 1
        return False
    outbox_consume(edge, conn, <uint32_t> written)
    return True


cdef int tls_send(Edge *edge, Connection *conn) noexcept nogil:
    """Encrypt and send what is queued until it is gone or the socket takes no more; close_notify behind the last.

    Returns OUTBOX_SENT, OUTBOX_BLOCKED (ciphertext or plaintext waits) or OUTBOX_BROKEN.
    """
    cdef TlsContext *context = <TlsContext *> edge.tls
    cdef TlsConn *tls = tls_of(edge, conn)
    cdef int status
    if tls.broken:
        outbox_drop(edge, conn)         # only the alert may leave
    if tls.unsent != NULL:
        status = _send_unsent(edge, conn, tls)
        if status != OUTBOX_SENT:
            return status
    while tls.ready:
        context.out_used = 0
        context.input_size = 0
        while conn.out_head != NULL and context.out_used + TLS_RECORD_BYTES + TLS_RECORD_MORE <= TLS_SEND_BYTES:
            if not _encrypt(edge, conn, tls):
                return OUTBOX_BROKEN
        if conn.out_head == NULL and conn.flags & FLAG_FINISHED:
            _say_end(tls)
        if context.out_used == 0:
            return OUTBOX_SENT
        status = _send_out(edge, conn, tls)
        if status != OUTBOX_SENT:
            return status
    return OUTBOX_SENT


cdef bint _fails(TlsConn *tls, int result) noexcept nogil:
    """Note what a call that brought nothing means; True: the peer's stream is broken."""
    cdef int error = SSL_get_error(tls.ssl, result)
    if error == LIBSSL_ERROR_ZERO_RETURN:
        tls.ended = 1
    elif error != LIBSSL_ERROR_WANT_READ:
        tls.broken = 1
    return tls.broken


cdef void _handshake(Edge *edge, Connection *conn, TlsConn *tls) noexcept nogil:
    """Go on with the handshake; once it is done, what follows is the transport's own."""
    cdef int result
    ERR_clear_error()
    result = SSL_do_handshake(tls.ssl)
    if result == 1:
        tls.ready = 1
        conn.stage = STAGE_UPGRADE if conn.flags & FLAG_WEBSOCKET else STAGE_FRAMES
        ledger_count(edge.ledger, COUNT_TLS_HANDSHAKES, 1)
        if SSL_session_reused(tls.ssl):
            ledger_count(edge.ledger, COUNT_TLS_RESUMED, 1)
    elif _fails(tls, result):
        ledger_count(edge.ledger, COUNT_TLS_FAILURES, 1)


cdef uint32_t _decrypt(Edge *edge, TlsConn *tls, uint8_t *target, uint32_t room) noexcept nogil:
    """Everything that the ciphertext at hand gives, so that none of it stays inside OpenSSL."""
    cdef uint32_t filled = 0
    cdef int got
    while filled < room:
        ERR_clear_error()
        got = SSL_read(tls.ssl, target + filled, <int> (room - filled))
        if got <= 0:
            if _fails(tls, got):
                ledger_count(edge.ledger, COUNT_BAD_FRAMES, 1)
            break
        filled += <uint32_t> got
    return filled


cdef int tls_read(Edge *edge, Connection *conn, const uint8_t *source, uint32_t size, uint8_t *target,
                  uint32_t room) noexcept nogil:
    """Take `size` bytes of ciphertext, all of them, and put the plaintext at `target`.

    What OpenSSL has to say on its own (its half of the handshake, tickets, an alert) is sent here. `room` is more than
    `size` and one record. Returns the bytes of plaintext, 0 for none yet, or a TlsStatus once there are none.
    """
    cdef TlsContext *context = <TlsContext *> edge.tls
    cdef TlsConn *tls = tls_of(edge, conn)
    cdef uint32_t filled = 0
    cdef bint sent = True
    if tls == NULL:
        tls = _conn_start(edge, conn)
        if tls == NULL:
            return TLS_BROKEN
    context.input = source
    context.input_size = size
    context.out_used = 0
    if not tls.ready:
        _handshake(edge, conn, tls)
    if tls.ready:
        filled = _decrypt(edge, tls, target, room)
    if context.out_used and tls.unsent != NULL:
        sent = _keep(edge, tls, context.out, context.out_used)
    elif context.out_used:
        sent = _send_out(edge, conn, tls) != OUTBOX_BROKEN
    if tls.unsent != NULL:
        outbox_touch(edge, conn)
    if tls.broken or not sent:
        return TLS_BROKEN
    return TLS_ENDED if tls.ended and filled == 0 else <int> filled


# From here on Python, at the start of a worker.

class TlsError(OSError):
    """TLS cannot be had as configured; the message names the file, or the library, and the reason."""


def _mapped():
    """The libssl that `import ssl` brought into this process, or None when it is linked into the interpreter."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if path.rpartition("/")[2].startswith("libssl"):
            return "/" + path
    return None


def library():
    """Load the table of functions, once, and say which OpenSSL it is.

    Returns:
        (path or soname, version text).

    Raises:
        TlsError: there is no libssl, or one that lacks a function.
    """
    global _opened
    cdef const char *missing
    if _opened is None:
        name = _mapped() or "libssl.so.3"
        missing = libssl_open(name.encode())
        if missing != NULL:
            raise TlsError(
                f"TLS needs OpenSSL's libssl as a shared library, and {missing.decode()} is not found (this Python has"
                f" {ssl.OPENSSL_VERSION}): install it"
                " (Debian: apt install libssl3), or leave tls_certificate and tls_key empty and let the load balancer"
                " terminate TLS")
        _opened = name
    return _opened, OpenSSL_version(0).decode()


cdef object _reason():
    """OpenSSL's first complaint, in words."""
    cdef unsigned long code = ERR_peek_error()
    cdef const char *text = ERR_reason_error_string(code)
    reason = "unknown error" if text == NULL else text.decode()
    ERR_clear_error()
    return reason


cdef object _readable(path, str setting):
    """The path as bytes, once it is sure that it can be read."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TlsError(f'{setting} = "{path}": {error.strerror}') from error
    return str(path).encode()


cdef int _use_files(void *ctx, certificate, key) except -1:
    chain, private = _readable(certificate, "tls_certificate"), _readable(key, "tls_key")
    if SSL_CTX_use_certificate_chain_file(ctx, chain) != 1:
        raise TlsError(f'tls_certificate = "{certificate}" is not a certificate chain in PEM: {_reason()}')
    if SSL_CTX_use_PrivateKey_file(ctx, private, LIBSSL_FILETYPE_PEM) != 1:
        reason = _reason()
        if "mismatch" in reason:
            raise TlsError(f'tls_key = "{key}" is not the key of tls_certificate = "{certificate}": {reason}')
        raise TlsError(f'tls_key = "{key}" is no private key in PEM without a passphrase: {reason}')
    if SSL_CTX_check_private_key(ctx) != 1:
        raise TlsError(f'tls_key = "{key}" is not the key of tls_certificate = "{certificate}": {_reason()}')
    return 0


cdef int _settings(void *ctx, bytes ticket_key) except -1:
    """TLS 1.2 or later, no renegotiation, sessions in tickets and none kept here."""
    if SSL_CTX_ctrl(ctx, LIBSSL_CTRL_MIN_VERSION, LIBSSL_TLS_1_2, NULL) != 1:
        raise TlsError(f"this OpenSSL does not do TLS 1.2: {_reason()}")
    SSL_CTX_set_options(ctx, LIBSSL_NO_COMPRESSION | LIBSSL_SERVER_PREFERENCE | LIBSSL_NO_RENEGOTIATION)
    SSL_CTX_ctrl(ctx, LIBSSL_CTRL_MODE, LIBSSL_MODES, NULL)
    SSL_CTX_ctrl(ctx, LIBSSL_CTRL_SESS_CACHE_MODE, 0, NULL)     # its cache would hold 20,480 sessions
    SSL_CTX_set_default_passwd_cb(ctx, _no_passphrase)
    if ticket_key and SSL_CTX_ctrl(ctx, LIBSSL_CTRL_TICKET_KEYS, len(ticket_key), <char *> ticket_key) != 1:
        raise TlsError(f"the ticket key is refused: {_reason()}")
    return 0


cdef TlsContext *tls_context_open(object certificate, object key, bytes ticket_key) except NULL:
    """The context of a worker; tls_context_free releases it.

    `ticket_key` (TICKET_KEY_BYTES, or empty for one of its own) lets the workers of a node take each other's tickets:
    a client that comes back does not choose its worker.

    Raises:
        TlsError: no library, or the files are not a certificate and its key.
    """
    cdef TlsContext *context
    library()
    if ticket_key and len(ticket_key) != TICKET_KEY_BYTES:
        raise ValueError(f"a ticket key has {TICKET_KEY_BYTES} bytes")
    context = <TlsContext *> calloc(1, sizeof(TlsContext))
    if context == NULL:
        raise MemoryError
    try:
        ERR_clear_error()
        context.ctx = SSL_CTX_new(TLS_server_method())
        context.method = BIO_meth_new(LIBSSL_BIO_TYPE, b"holdfast")
        context.received = <uint8_t *> malloc(RECEIVE_BYTES)
        context.out = <uint8_t *> malloc(TLS_OUT_BYTES)
        context.record = <uint8_t *> malloc(TLS_RECORD_BYTES)
        if not (context.ctx and context.method and context.received and context.out and context.record):
            raise MemoryError
        BIO_meth_set_read(context.method, _bio_read)
        BIO_meth_set_write(context.method, _bio_write)
        BIO_meth_set_ctrl(context.method, _bio_control)
        _settings(context.ctx, ticket_key)
        _use_files(context.ctx, certificate, key)
    except BaseException:
        tls_context_free(context)
        raise
    return context


cdef void tls_context_free(TlsContext *context) noexcept nogil:
    """Release a context, half made or whole; every connection of it must be gone."""
    if context == NULL:
        return
    if context.ctx != NULL:
        SSL_CTX_free(context.ctx)
    if context.method != NULL:
        BIO_meth_free(context.method)
    free(context.received)
    free(context.out)
    free(context.record)
    free(context)


def check(certificate, key):
    """See whether these two files would do, without serving.

    Raises:
        TlsError: they would not; the message says which and why.
    """
    tls_context_free(tls_context_open(certificate, key, b""))
