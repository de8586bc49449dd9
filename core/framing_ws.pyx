"""The Python face of framing_ws.pxd: a decoder with a buffer of its own, for tests and tools."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.framing cimport FRAMING_BAD, FRAMING_TOO_LARGE, FRAMING_UTF8, Cursor, FrameView
from core.framing_ws cimport (
    WS_HEADER_SIZE_MAX, WsDecoder, ws_decoder_init, ws_header_write, ws_header_write_masked, ws_mask_apply, ws_next
)

BAD = FRAMING_BAD
TOO_LARGE = FRAMING_TOO_LARGE
UTF8 = FRAMING_UTF8


cdef class WsReader:
    """Cuts messages and control frames out of bytes fed to it; `error` is a FRAMING_ code once broken, else 0."""

    cdef WsDecoder decoder
    cdef bytearray pending
    cdef readonly uint32_t max_frame
    cdef readonly uint32_t need
    cdef readonly int error

    def __init__(self, max_frame: int = 65536, client: bool = False) -> None:
        ws_decoder_init(&self.decoder, client)
        self.pending = bytearray()
        self.max_frame = max_frame
        self.need = 0
        self.error = 0

    @property
    def buffered(self) -> int:
        """Bytes kept for a message that is not complete."""
        return len(self.pending)

    @property
    def assembled(self) -> int:
        """Of them, payload bytes of its earlier fragments."""
        return self.decoder.assembled

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Add received bytes; returns (opcode, payload) of what they complete, in order."""
        cdef FrameView view
        cdef Cursor cursor
        cdef int got = 1
        cdef list frames = []
        self.pending += data
        if self.error or <uint32_t>len(self.pending) < self.need:
            return frames
        cursor.base = <uint8_t*><char*>self.pending
        cursor.pos = 0
        cursor.end = <uint32_t>len(self.pending)
        while True:
            got = ws_next(&self.decoder, &cursor, self.max_frame, &view, &self.need)
            if got <= 0:
                break
            frames.append((view.opcode, (<const char*>view.data)[:view.size]))
        self.error = got
        self.pending = self.pending[cursor.pos:cursor.end]
        return frames


def header(opcode: int, payload_size: int, mask: bytes | None = None) -> bytes:
    """The header of a frame that is a whole message; `mask` (4 bytes) makes it a client's."""
    cdef uint8_t dst[WS_HEADER_SIZE_MAX]
    cdef uint32_t size
    if mask is None:
        size = ws_header_write(dst, opcode, <uint64_t>payload_size)
    else:
        if len(mask) != 4:
            raise ValueError("a mask has 4 bytes")
        size = ws_header_write_masked(dst, opcode, <uint64_t>payload_size, <const uint8_t*><const char*>mask)
    return (<char*>dst)[:size]


def masked(payload: bytes, mask: bytes) -> bytes:
    """`payload` under `mask` (4 bytes)."""
    cdef bytearray work = bytearray(payload)
    if len(mask) != 4:
        raise ValueError("a mask has 4 bytes")
    ws_mask_apply(<uint8_t*><char*>work, <uint32_t>len(work), <const uint8_t*><const char*>mask)
    return bytes(work)
