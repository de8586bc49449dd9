"""TLS."""


cdef int tls_conn_start(Edge *edge, Connection *conn) noexcept nogil:
    return -1


cdef void tls_conn_free(Edge *edge, Connection *conn) noexcept nogil:
    conn.tls = NULL


cdef int tls_read(Edge *edge, Connection *conn, Cursor *cursor) noexcept nogil:
    return -1
