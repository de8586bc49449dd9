"""WebSocket's opening handshake: read the request whole, then judge it; write the answers.

The order of judgement: not HTTP (400), too long (431), not HTTP/1.1 (505), not GET (405), another path (404), a field
that is missing, repeated or announces a body (400), no upgrade or another version (426), a malformed key (400).
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, strlen

from core.base64 cimport base64_encode, base64_value
from core.http_upgrade cimport HTTP_REQUEST_SIZE_MAX, WS_ACCEPT_SIZE, HttpUpgrade
from core.sha1 cimport SHA1_SIZE, sha1

cdef enum:
    KEY_SIZE = 24  # base64 of 16 bytes
    GUID_SIZE = 36

cdef extern from *:
    """
    static const char GUID[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; /* RFC 6455 section 1.3 */
    """
    const char* GUID

ctypedef struct Span:
    const uint8_t* data  # borrowed from the request
    size_t size          # bytes

ctypedef struct Findings:  # what the header fields said, judged once all of them are read
    Span key
    Span origin
    uint32_t hosts       # how often the field came
    uint32_t keys
    uint32_t versions
    bint version_13
    bint upgrade         # Upgrade names websocket
    bint connection      # Connection names upgrade
    bint body            # a body is announced


cdef inline uint8_t lower(uint8_t char) noexcept nogil:
    return char | 0x20 if c"A" <= char <= c"Z" else char


cdef inline bint token_char(uint8_t char) noexcept nogil:
    """tchar of RFC 9110 section 5.6.2."""
    if c"a" <= lower(char) <= c"z" or c"0" <= char <= c"9":
        return True
    return (
        char == c"!" or c"#" <= char <= c"'" or char == c"*" or char == c"+" or char == c"-" or char == c"."
        or c"^" <= char <= c"`" or char == c"|" or char == c"~"
    )


cdef bint span_is(Span span, const char* text) noexcept nogil:
    """Whether `span` is `text` (lower-case, NUL-ended), ignoring the case of letters."""
    cdef size_t at
    if span.size != strlen(text):
        return False
    for at in range(span.size):
        if lower(span.data[at]) != <uint8_t>text[at]:
            return False
    return True


cdef Span span_trim(Span span) noexcept nogil:
    while span.size and (span.data[0] == c" " or span.data[0] == c"\t"):
        span.data += 1
        span.size -= 1
    while span.size and (span.data[span.size - 1] == c" " or span.data[span.size - 1] == c"\t"):
        span.size -= 1
    return span


cdef bint list_has(Span value, const char* token) noexcept nogil:
    """Whether a comma-separated list (RFC 9110 section 5.6.1) holds `token` (lower-case)."""
    cdef Span item
    cdef size_t at
    cdef size_t start = 0
    for at in range(value.size + 1):
        if at == value.size or value.data[at] == c",":
            item.data = value.data + start
            item.size = at - start
            if span_is(span_trim(item), token):
                return True
            start = at + 1
    return False


cdef int head_size(const uint8_t* buf, size_t size) noexcept nogil:
    """Size of the request's head with its empty line; 0: not complete; -400: characters that no head may hold."""
    cdef size_t at
    cdef uint8_t char
    for at in range(size):
        char = buf[at]
        if char == c"\n":
            if at == 0 or buf[at - 1] != c"\r":
                return -400
            if at >= 3 and buf[at - 2] == c"\n":
                return <int>at + 1
        elif at and buf[at - 1] == c"\r":
            return -400
        elif (char < 0x20 and char != c"\t" and char != c"\r") or char == 0x7F:
            return -400
    return 0


cdef bint version_valid(Span version) noexcept nogil:
    """Whether `version` is HTTP/ digit . digit (RFC 9112 section 2.3)."""
    return (
        version.size == 8 and memcmp(version.data, b"HTTP/", 5) == 0 and c"0" <= version.data[5] <= c"9"
        and version.data[6] == c"." and c"0" <= version.data[7] <= c"9"
    )


cdef int target_check(Span target, const char* path) noexcept nogil:
    cdef size_t path_size = strlen(path)
    if target.size < path_size or memcmp(target.data, path, path_size) != 0:
        return -404
    return 0 if target.size == path_size or target.data[path_size] == c"?" else -404


cdef int request_line_check(Span line, const char* path) noexcept nogil:
    """0, or minus the status for the first line."""
    cdef Span[3] parts
    cdef int part = 0
    cdef size_t at
    parts[0].data = line.data
    for at in range(3):
        parts[at].size = 0
    for at in range(line.size):
        if line.data[at] == c" ":
            part += 1
            if part > 2:
                return -400
            parts[part].data = line.data + at + 1
        elif line.data[at] <= 0x20 or line.data[at] >= 0x7F or (part == 0 and not token_char(line.data[at])):
            return -400
        else:
            parts[part].size += 1
    if part != 2 or not parts[0].size or not parts[1].size or not version_valid(parts[2]):
        return -400
    if memcmp(parts[2].data, b"HTTP/1.1", 8) != 0:
        return -505
    if parts[0].size != 3 or memcmp(parts[0].data, b"GET", 3) != 0:
        return -405
    return target_check(parts[1], path)


cdef void field_note(Span name, Span value, Findings* found) noexcept nogil:
    """Keep what one header field says."""
    if span_is(name, b"host"):
        found.hosts += 1
    elif span_is(name, b"upgrade"):
        found.upgrade = found.upgrade or list_has(value, b"websocket")
    elif span_is(name, b"connection"):
        found.connection = found.connection or list_has(value, b"upgrade")
    elif span_is(name, b"sec-websocket-key"):
        found.keys += 1
        found.key = value
    elif span_is(name, b"sec-websocket-version"):
        found.versions += 1
        found.version_13 = span_is(value, b"13")
    elif span_is(name, b"origin"):
        found.origin = value
    elif span_is(name, b"transfer-encoding") or (span_is(name, b"content-length") and not span_is(value, b"0")):
        found.body = True


cdef int field_read(Span line, Findings* found) noexcept nogil:
    """Read one header line; -400 for a name that is no token, which also refuses folded lines."""
    cdef Span name = line
    cdef Span value
    name.size = 0
    while name.size < line.size and token_char(line.data[name.size]):
        name.size += 1
    if name.size == 0 or name.size == line.size or line.data[name.size] != c":":
        return -400
    value.data = line.data + name.size + 1
    value.size = line.size - name.size - 1
    field_note(name, span_trim(value), found)
    return 0


cdef inline size_t line_size(const uint8_t* data) noexcept nogil:
    """Bytes before the CR that ends the line; the caller has seen that there is one."""
    cdef size_t size = 0
    while data[size] != c"\r":
        size += 1
    return size


cdef int fields_read(const uint8_t* data, Findings* found) noexcept nogil:
    """Read the header lines up to the empty one."""
    cdef Span line
    line.data = data
    while line.data[0] != c"\r":
        line.size = line_size(line.data)
        if field_read(line, found) < 0:
            return -400
        line.data += line.size + 2
    return 0


cdef bint key_valid(Span key) noexcept nogil:
    """Whether `key` is base64 of 16 bytes; the bits that its last character has over may be anything."""
    cdef size_t at
    if key.size != KEY_SIZE or key.data[KEY_SIZE - 2] != c"=" or key.data[KEY_SIZE - 1] != c"=":
        return False
    for at in range(KEY_SIZE - 2):
        if base64_value(key.data[at]) < 0:
            return False
    return True


cdef int findings_check(const Findings* found) noexcept nogil:
    if found.hosts != 1 or found.body or found.keys > 1 or found.versions > 1:
        return -400
    if not found.upgrade or not found.connection or not found.version_13:
        return -426
    return 0 if key_valid(found.key) else -400


cdef void accept_write(Span key, uint8_t* accept) noexcept nogil:
    """RFC 6455 section 4.2.2, item 5.4."""
    cdef uint8_t[KEY_SIZE + GUID_SIZE] text
    cdef uint8_t[SHA1_SIZE] digest
    memcpy(text, key.data, KEY_SIZE)
    memcpy(text + KEY_SIZE, GUID, GUID_SIZE)
    sha1(text, sizeof(text), digest)
    base64_encode(digest, SHA1_SIZE, accept)


cdef int http_upgrade_parse(const uint8_t* buf, size_t size, const char* path, HttpUpgrade* out) noexcept nogil:
    cdef Findings found = Findings(
        key=Span(NULL, 0), origin=Span(NULL, 0), hosts=0, keys=0, versions=0, version_13=False, upgrade=False,
        connection=False, body=False
    )
    cdef Span line
    cdef int status
    cdef int head = head_size(buf, size if size < HTTP_REQUEST_SIZE_MAX else HTTP_REQUEST_SIZE_MAX)
    if head < 0:
        return head
    if head == 0:
        # A first byte that starts no method is not worth waiting for more of: TLS or MessagePack on the wrong port.
        if size and not token_char(buf[0]):
            return -400
        return 0 if size < HTTP_REQUEST_SIZE_MAX else -431
    line.data = buf
    line.size = line_size(buf)
    status = request_line_check(line, path)
    if status == -400 or fields_read(buf + line.size + 2, &found) < 0:
        return -400
    if status == 0:
        status = findings_check(&found)
    if status < 0:
        return status
    accept_write(found.key, out.accept)
    out.origin = found.origin.data
    out.origin_size = <uint32_t>found.origin.size
    return head


cdef const char* reason_phrase(int status) noexcept nogil:
    if status == 400:
        return "Bad Request"
    if status == 403:
        return "Forbidden"
    if status == 404:
        return "Not Found"
    if status == 405:
        return "Method Not Allowed"
    if status == 426:
        return "Upgrade Required"
    if status == 429:
        return "Too Many Requests"
    if status == 431:
        return "Request Header Fields Too Large"
    if status == 503:
        return "Service Unavailable"
    if status == 505:
        return "HTTP Version Not Supported"
    return "Internal Server Error" if status >= 500 else "Error"


cdef const char* status_fields(int status) noexcept nogil:
    """The header fields that a status must come with (RFC 9110 sections 15.5.6 and 15.5.22, RFC 6455 section 4.4)."""
    if status == 405:
        return "Allow: GET\r\n"
    if status == 426:
        return "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    return ""


cdef size_t http_response_write(int status, const HttpUpgrade* upgrade, uint8_t* dst, size_t cap) noexcept nogil:
    cdef const char* reason
    cdef int size
    if status == 101:
        size = snprintf(
            <char*>dst, cap,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %.*s\r\n\r\n",
            <int>WS_ACCEPT_SIZE, <const char*>upgrade.accept
        )
    else:
        reason = reason_phrase(status)
        size = snprintf(
            <char*>dst, cap,
            b"HTTP/1.1 %d %s\r\n%sConnection: %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%d %s\n",
            status, reason, status_fields(status), <const char*>(b"upgrade, close" if status == 426 else b"close"),
            <int>strlen(reason) + 5, status, reason
        )
    # snprintf ends with a NUL, which needs its room but is not sent.
    return <size_t>size if 0 < size and <size_t>size < cap else 0


def parse(request: bytes, path: bytes = b"/ws") -> tuple[int, bytes, bytes | None]:
    """Parse a request: (consumed bytes, 0 or minus a status; the accept key; Origin)."""
    cdef HttpUpgrade upgrade
    cdef const uint8_t* buf = <const uint8_t*><const char*>request
    cdef int got
    upgrade.origin = NULL
    got = http_upgrade_parse(buf, len(request), <const char*>path, &upgrade)
    if got <= 0:
        return got, b"", None
    origin = None if upgrade.origin == NULL else (<const char*>upgrade.origin)[:upgrade.origin_size]
    return got, (<char*>upgrade.accept)[:WS_ACCEPT_SIZE], origin


def response(status: int, accept: bytes = b"", capacity: int = 256) -> bytes:
    """The whole answer, empty if `capacity` bytes are too few."""
    cdef HttpUpgrade upgrade
    cdef bytearray buffer = bytearray(capacity)
    cdef size_t size
    if status == 101:
        if len(accept) != WS_ACCEPT_SIZE:
            raise ValueError("an accept key has 28 characters")
        memcpy(upgrade.accept, <const char*>accept, WS_ACCEPT_SIZE)
    size = http_response_write(status, &upgrade, <uint8_t*><char*>buffer, capacity)
    return bytes(buffer[:size])
