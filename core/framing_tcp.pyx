"""The Python face of framing_tcp.pxd: a decoder with a buffer of its own, for tests and tools."""

from libc.stdint cimport uint8_t, uint32_t

from core.framing cimport FRAMING_BAD, FRAMING_TOO_LARGE, Cursor, FrameView
from core.framing_tcp cimport TCP_HEADER_SIZE, TcpDecoder, tcp_decoder_init, tcp_header_write, tcp_next

BAD = FRAMING_BAD
TOO_LARGE = FRAMING_TOO_LARGE


cdef class TcpReader:
    """Cuts the bodies out of bytes fed to it; `error` is a FRAMING_ code once the stream is broken, else 0."""

    cdef TcpDecoder decoder
    cdef bytearray pending
    cdef readonly uint32_t max_frame
    cdef readonly uint32_t need
    cdef readonly int error

    def __init__(self, max_frame: int = 65536) -> None:
        tcp_decoder_init(&self.decoder)
        self.pending = bytearray()
        self.max_frame = max_frame
        self.need = 0
        self.error = 0

    @property
    def buffered(self) -> int:
        """Bytes kept for a body that is not complete."""
        return len(self.pending)

    def feed(self, data: bytes) -> list[bytes]:
        """Add received bytes; returns the bodies that they complete, in order."""
        cdef FrameView view
        cdef Cursor cursor
        cdef int got = 1
        cdef list bodies = []
        self.pending += data
        if self.error or <uint32_t>len(self.pending) < self.need:
            return bodies
        cursor.base = <uint8_t*><char*>self.pending
        cursor.pos = 0
        cursor.end = <uint32_t>len(self.pending)
        while True:
            got = tcp_next(&self.decoder, &cursor, self.max_frame, &view, &self.need)
            if got <= 0:
                break
            bodies.append((<const char*>view.data)[:view.size])
        self.error = got
        self.pending = self.pending[cursor.pos:cursor.end]
        return bodies


def header(body_size: int) -> bytes:
    """The length that goes before a body of `body_size` bytes."""
    cdef uint8_t dst[TCP_HEADER_SIZE]
    cdef uint32_t size = tcp_header_write(dst, body_size)
    return (<char*>dst)[:size]
