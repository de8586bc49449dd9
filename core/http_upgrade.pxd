# The opening handshake of a WebSocket, server side: a strict HTTP/1.1 request parser and the answers (RFC 6455
# section 4.2, RFC 9112). No allocation; the request is parsed once it is complete, what cannot become one is refused
# at once.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    HTTP_REQUEST_SIZE_MAX = 8192
    HTTP_RESPONSE_SIZE_MAX = 256  # room that every answer fits in
    WS_ACCEPT_SIZE = 28

ctypedef struct HttpUpgrade:
    uint8_t accept[WS_ACCEPT_SIZE]  # Sec-WebSocket-Accept, base64 without an ending NUL
    const uint8_t* origin           # Origin's value, borrowed until the request's bytes are given up; NULL without one
    uint32_t origin_size            # bytes


# Consumed bytes (> 0): a complete, acceptable request for `path` (NUL-ended; a query may follow it), `out` is filled.
# 0: more bytes are needed. < 0: minus the HTTP status to answer with: 400, 404 (another path), 405 (not GET),
# 426 (no upgrade, or not version 13), 431 (over HTTP_REQUEST_SIZE_MAX), 505 (not HTTP/1.1).
cdef int http_upgrade_parse(const uint8_t* buf, size_t size, const char* path, HttpUpgrade* out) noexcept nogil

# Write the whole answer: 101 with `upgrade`'s key, or an error (`upgrade` may be NULL) that announces the close.
# Returns its size, or 0 if `cap` is too small.
cdef size_t http_response_write(int status, const HttpUpgrade* upgrade, uint8_t* dst, size_t cap) noexcept nogil
