# Audit of a worker's data plane: every table of the edge.

from libc.stdint cimport uint64_t

from core.edge cimport Edge


cdef void edge_audit(Edge *edge, uint64_t request) noexcept nogil
