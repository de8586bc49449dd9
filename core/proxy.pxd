# The PROXY protocol, versions 1 and 2, as a load balancer writes it in front of a connection
# (haproxy.org/download/2.9/doc/proxy-protocol.txt). Only the source is kept; TLVs are passed over.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    PROXY_BAD = -1
    PROXY_V1_SIZE_MAX = 107   # line end included
    PROXY_V2_SIZE_MAX = 4096  # header and TLVs; the specification asks for 536 at least

cdef enum:
    PROXY_UNSPEC = 0  # no address given (LOCAL, UNKNOWN, AF_UNIX): the socket's own peer stands
    PROXY_IPV4 = 4
    PROXY_IPV6 = 6

ctypedef struct ProxyHeader:
    uint8_t family      # PROXY_UNSPEC, PROXY_IPV4 or PROXY_IPV6
    uint8_t source[16]  # network order; IPv4 takes the first 4 bytes, the others are 0
    uint16_t port       # source port, host order


# Bytes consumed (> 0) and `out`; 0: more bytes are needed; PROXY_BAD: this is no PROXY header, close.
cdef int proxy_parse(const uint8_t* buf, size_t size, ProxyHeader* out) noexcept nogil
