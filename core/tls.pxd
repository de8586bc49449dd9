# TLS: the record layer of OpenSSL between recv and the codecs, and between the outbox and send.
#
# The functions come from the libssl that the interpreter has loaded (libssl.h), so that its security updates are the
# operating system's. A connection has one SSL object, made when its first bytes arrive, and one BIO, whose callbacks
# read the bytes that recv just brought and write into one buffer of the worker: neither direction keeps a buffer per
# connection. OpenSSL itself keeps a partial record; ciphertext that the socket did not take waits in a leased ring.
# Invariant: between two calls `input_size` and `out_used` mean nothing; `unsent` is NULL unless the socket is full.

from libc.stdint cimport uint8_t, uint32_t

from core.conn cimport FLAG_TLS, Connection, conn_aside_at
from core.edge cimport Edge
from core.ring cimport Ring

# A record may add 256 bytes (RFC 8446); the ciphers of TLS 1.2 add 53 at most. TLS_OUT_BYTES bounds what a
# connection may have encrypted and not sent: a peer that asks for answers (key updates) and reads none is cut off here.
cdef enum:
    TLS_RECORD_BYTES = 16384    # of plaintext; RFC 8446 section 5.1
    TLS_RECORD_MORE = 512
    TLS_SEND_BYTES = 65536      # of ciphertext offered to one send
    TLS_OUT_BYTES = 262144
    TLS_INPUT_BYTES = 229376    # asked of one recv: with the record held back it still fits behind a partial frame

cdef enum TlsStatus:
    TLS_ENDED = -1              # the peer said close_notify
    TLS_BROKEN = -2             # what came is no TLS, or a record was tampered with

ctypedef struct TlsContext:     # one a worker; edge.tls
    void *ctx                   # owned: SSL_CTX
    void *method                # owned: BIO_METHOD
    const uint8_t *input        # borrowed for one call: ciphertext that OpenSSL has not taken yet
    uint32_t input_size
    uint32_t out_used
    uint8_t *received           # owned: where recv puts ciphertext, TLS_INPUT_BYTES and a PROXY header's company
    uint8_t *out                # owned: TLS_OUT_BYTES of ciphertext to send
    uint8_t *record             # owned: short messages are put together here, TLS_RECORD_BYTES

ctypedef struct TlsConn:        # the aside's tls; 24 bytes, beside what OpenSSL allocates for the SSL
    void *ssl                   # owned
    Ring *unsent                # owned: ciphertext that the socket did not take; NULL while there is none
    uint8_t ready               # the handshake is done
    uint8_t ended               # the peer said close_notify: a decrypted rest may still be acted on
    uint8_t broken              # a fatal error: the SSL object may only be freed
    uint8_t told                # our close_notify was written


cdef inline TlsConn *tls_of(Edge *edge, Connection *conn) noexcept nogil:
    """The connection's TLS state, or NULL."""
    return <TlsConn *> conn_aside_at(&edge.asides, conn).tls if conn.flags & FLAG_TLS else NULL


cdef inline bint tls_ended(Edge *edge, Connection *conn) noexcept nogil:
    return conn.flags & FLAG_TLS and tls_of(edge, conn).ended

cdef int tls_read(Edge *edge, Connection *conn, const uint8_t *source, uint32_t size, uint8_t *target,
                  uint32_t room) noexcept nogil
cdef int tls_send(Edge *edge, Connection *conn) noexcept nogil
cdef void tls_conn_free(Edge *edge, Connection *conn) noexcept nogil
cdef TlsContext *tls_context_open(object certificate, object key, bytes ticket_key) except NULL
cdef void tls_context_free(TlsContext *context) noexcept nogil
