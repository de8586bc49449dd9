# The one table of codes: ERROR, FIN, WebSocket close status, metrics and docs derive from it.
#
# The number's range is the class (protocol, "Codes"): 0 a wanted end, 1-199 come back and resume, 200-399 come back
# afresh, 400-599 this request only, 600-899 stop. Descriptions stand beside it in codes.pyx.

cpdef enum Code:
    BYE = 0
    DRAINING = 1
    OVERLOADED = 2
    SLOW_CONSUMER = 3
    HEARTBEAT_LOST = 4
    UNAVAILABLE = 5
    INTERNAL = 6
    MOVED = 7
    TOKEN_EXPIRED = 200
    SESSION_EXPIRED = 201
    HELLO_TIMEOUT = 202
    NOT_ALLOWED = 400
    NO_SUCH_CHANNEL = 401
    NOT_JOINED = 402
    RATE_LIMITED = 403
    TOO_MANY_CHANNELS = 404
    TOO_LARGE = 405
    BAD_REQUEST = 406
    BAD_FRAME = 600
    FRAME_TOO_LARGE = 601
    BAD_TOKEN = 602
    BANNED = 603
    KICKED = 604
    RESUMED_ELSEWHERE = 605
    VERSION = 606


cdef inline const char *code_name(int code) noexcept nogil:
    """The code's name on the wire; a static string."""
    if code < 200:
        if code == BYE: return b"bye"
        if code == DRAINING: return b"draining"
        if code == OVERLOADED: return b"overloaded"
        if code == SLOW_CONSUMER: return b"slow_consumer"
        if code == HEARTBEAT_LOST: return b"heartbeat_lost"
        if code == UNAVAILABLE: return b"unavailable"
        if code == MOVED: return b"moved"
        return b"internal"
    if code < 600:
        if code == TOKEN_EXPIRED: return b"token_expired"
        if code == SESSION_EXPIRED: return b"session_expired"
        if code == HELLO_TIMEOUT: return b"hello_timeout"
        if code == NOT_ALLOWED: return b"not_allowed"
        if code == NO_SUCH_CHANNEL: return b"no_such_channel"
        if code == NOT_JOINED: return b"not_joined"
        if code == RATE_LIMITED: return b"rate_limited"
        if code == TOO_MANY_CHANNELS: return b"too_many_channels"
        if code == TOO_LARGE: return b"too_large"
        return b"bad_request"
    if code == BAD_FRAME: return b"bad_frame"
    if code == FRAME_TOO_LARGE: return b"frame_too_large"
    if code == BAD_TOKEN: return b"bad_token"
    if code == BANNED: return b"banned"
    if code == KICKED: return b"kicked"
    if code == RESUMED_ELSEWHERE: return b"resumed_elsewhere"
    return b"version"


cdef inline const char *code_class(int code) noexcept nogil:
    """What a client should do about a FIN with this code: resume, fresh or stop."""
    if code == BYE or code >= 400:
        return b"stop"
    return b"resume" if code < 200 else b"fresh"
