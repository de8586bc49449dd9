"""The PROXY protocol: the source that a load balancer saw, from one line of text (v1) or a binary header (v2)."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from core.proxy cimport (
    PROXY_BAD, PROXY_IPV4, PROXY_IPV6, PROXY_UNSPEC, PROXY_V1_SIZE_MAX, PROXY_V2_SIZE_MAX, ProxyHeader
)

cdef extern from "arpa/inet.h" nogil:
    int inet_pton(int family, const char* text, void* address)

cdef extern from "sys/socket.h" nogil:
    int AF_INET
    int AF_INET6

cdef extern from *:
    """
    static const char V1_SIGNATURE[] = "PROXY ";
    static const char V2_SIGNATURE[] = "\\r\\n\\r\\n\\0\\r\\nQUIT\\n";
    """
    const char* V1_SIGNATURE
    const char* V2_SIGNATURE

cdef enum:
    V1_SIGNATURE_SIZE = 6
    V2_SIGNATURE_SIZE = 12
    V2_HEADER_SIZE = 16
    ADDRESS_TEXT_SIZE_MAX = 45  # the longest that inet_pton takes

ctypedef struct Text:
    const uint8_t* data  # borrowed from the line
    size_t size


# ---- version 1 -----------------------------------------------------------------------------------------------------

cdef int address_read(Text text, uint8_t family, uint8_t* address) noexcept nogil:
    """Read an address of `family`; inet_pton wants it ended by a NUL, and refuses leading zeros itself."""
    cdef char[ADDRESS_TEXT_SIZE_MAX + 1] copy
    cdef size_t at
    if text.size == 0 or text.size > ADDRESS_TEXT_SIZE_MAX:
        return PROXY_BAD
    for at in range(text.size):
        if text.data[at] == 0:
            return PROXY_BAD
    memcpy(copy, text.data, text.size)
    copy[text.size] = 0
    return 0 if inet_pton(AF_INET if family == PROXY_IPV4 else AF_INET6, copy, address) == 1 else PROXY_BAD


cdef int port_read(Text text, uint16_t* port) noexcept nogil:
    """Read a decimal port without leading zeros."""
    cdef uint32_t value = 0
    cdef size_t at
    if text.size == 0 or text.size > 5 or (text.size > 1 and text.data[0] == c"0"):
        return PROXY_BAD
    for at in range(text.size):
        if not c"0" <= text.data[at] <= c"9":
            return PROXY_BAD
        value = value * 10 + (text.data[at] - c"0")
    port[0] = <uint16_t>value
    return 0 if value <= 0xFFFF else PROXY_BAD


cdef int v1_addresses_read(const Text* fields, ProxyHeader* out) noexcept nogil:
    """Read source, destination and their ports; what is not kept must be well-formed too."""
    cdef uint8_t destination[16]
    cdef uint16_t port = 0
    if address_read(fields[0], out.family, out.source) < 0 or address_read(fields[1], out.family, destination) < 0:
        return PROXY_BAD
    if port_read(fields[2], &out.port) < 0 or port_read(fields[3], &port) < 0:
        return PROXY_BAD
    return 0


cdef int v1_line_read(const uint8_t* line, size_t size, ProxyHeader* out) noexcept nogil:
    """Read what stands between "PROXY " and the line's end."""
    cdef Text[4] fields
    cdef int count = 0
    cdef size_t start = 5
    cdef size_t at
    if size >= 7 and memcmp(line, b"UNKNOWN", 7) == 0:
        return 0 if size == 7 or line[7] == c" " else PROXY_BAD
    if size < 5 or (memcmp(line, b"TCP4 ", 5) != 0 and memcmp(line, b"TCP6 ", 5) != 0):
        return PROXY_BAD
    out.family = PROXY_IPV4 if line[3] == c"4" else PROXY_IPV6
    for at in range(5, size + 1):
        if at == size or line[at] == c" ":
            if count == 4:
                return PROXY_BAD
            fields[count].data = line + start
            fields[count].size = at - start
            count += 1
            start = at + 1
    return v1_addresses_read(fields, out) if count == 4 else PROXY_BAD


cdef int v1_parse(const uint8_t* buf, size_t size, ProxyHeader* out) noexcept nogil:
    cdef size_t limit = size if size < PROXY_V1_SIZE_MAX else PROXY_V1_SIZE_MAX
    cdef size_t at
    for at in range(V1_SIGNATURE_SIZE, limit):
        if buf[at] == c"\n":
            if buf[at - 1] != c"\r":
                return PROXY_BAD
            if v1_line_read(buf + V1_SIGNATURE_SIZE, at - 1 - V1_SIGNATURE_SIZE, out) < 0:
                return PROXY_BAD
            return <int>at + 1
    return 0 if size < PROXY_V1_SIZE_MAX else PROXY_BAD


# ---- version 2 -----------------------------------------------------------------------------------------------------

cdef int v2_addresses_read(uint8_t family, const uint8_t* body, uint32_t size, ProxyHeader* out) noexcept nogil:
    """Read the source behind a PROXY command; families that have no address of ours count as none given."""
    cdef uint32_t address_size = 4 if family == 0x11 else 16
    if family == 0x11 or family == 0x21:
        if size < 2 * address_size + 4:
            return PROXY_BAD
        out.family = PROXY_IPV4 if family == 0x11 else PROXY_IPV6
        memcpy(out.source, body, address_size)
        out.port = <uint16_t>((<uint32_t>body[2 * address_size] << 8) | body[2 * address_size + 1])
        return 0
    # 0x00: unspecified; 0x31: AF_UNIX over a stream. Datagrams cannot have come by a stream.
    return 0 if family == 0x00 or family == 0x31 else PROXY_BAD


cdef int v2_parse(const uint8_t* buf, size_t size, ProxyHeader* out) noexcept nogil:
    cdef uint32_t body_size
    # Version 2, command LOCAL (0: a health check of the balancer's own) or PROXY (1).
    if size > V2_SIGNATURE_SIZE and buf[12] != 0x20 and buf[12] != 0x21:
        return PROXY_BAD
    if size < V2_HEADER_SIZE:
        return 0
    body_size = (<uint32_t>buf[14] << 8) | buf[15]
    if V2_HEADER_SIZE + body_size > PROXY_V2_SIZE_MAX:
        return PROXY_BAD
    if size < V2_HEADER_SIZE + body_size:
        return 0
    if buf[12] == 0x21 and v2_addresses_read(buf[13], buf + V2_HEADER_SIZE, body_size, out) < 0:
        return PROXY_BAD
    return <int>(V2_HEADER_SIZE + body_size)


cdef int proxy_parse(const uint8_t* buf, size_t size, ProxyHeader* out) noexcept nogil:
    memset(out, 0, sizeof(ProxyHeader))
    out.family = PROXY_UNSPEC
    if size == 0:
        return 0
    if memcmp(buf, V1_SIGNATURE, size if size < V1_SIGNATURE_SIZE else V1_SIGNATURE_SIZE) == 0:
        return 0 if size < V1_SIGNATURE_SIZE else v1_parse(buf, size, out)
    if memcmp(buf, V2_SIGNATURE, size if size < V2_SIGNATURE_SIZE else V2_SIGNATURE_SIZE) == 0:
        return 0 if size < V2_SIGNATURE_SIZE else v2_parse(buf, size, out)
    return PROXY_BAD


def parse(data: bytes) -> tuple[int, int, bytes, int]:
    """Parse a header: (consumed bytes, 0 or PROXY_BAD; family 0, 4 or 6; source, 16 bytes; port)."""
    cdef ProxyHeader header
    cdef int got = proxy_parse(<const uint8_t*><const char*>data, len(data), &header)
    return got, header.family, (<char*>header.source)[:16], header.port
