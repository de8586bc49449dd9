# TLS: placeholder of the header, replaced below.
from core.conn cimport Connection
from core.edge cimport Edge
from core.framing cimport Cursor

cdef int tls_conn_start(Edge *edge, Connection *conn) noexcept nogil
cdef void tls_conn_free(Edge *edge, Connection *conn) noexcept nogil
cdef int tls_read(Edge *edge, Connection *conn, Cursor *cursor) noexcept nogil
