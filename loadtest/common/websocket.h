/* The part of RFC 6455 that the load programs need: the accept key, frame headers, masking. No sockets here. */
#ifndef LOADTEST_WEBSOCKET_H
#define LOADTEST_WEBSOCKET_H

#include "msgpack.h"

enum { WS_TEXT = 0x1, WS_BINARY = 0x2, WS_CLOSE = 0x8, WS_PING = 0x9, WS_PONG = 0xa };
enum { WS_HEADER_BYTES_MAX = 14, WS_ACCEPT_BYTES = 28, WS_KEY_BYTES = 24 };

typedef struct {
    uint64_t payload_bytes;
    uint8_t mask[4];
    uint8_t header_bytes;
    uint8_t opcode;
    bool final;
    bool masked;
} WsHeader;

static inline uint32_t rotate_left(uint32_t value, unsigned bits) { return value << bits | value >> (32 - bits); }

static inline void sha1_block(uint32_t h[5], const uint8_t *block) {
    uint32_t w[80];
    for (int i = 0; i < 16; i++) w[i] = (uint32_t)load_be(block + 4 * i, 4);
    for (int i = 16; i < 80; i++) w[i] = rotate_left(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 80; i++) {
        uint32_t f = i < 20   ? (b & c) | (~b & d)
                     : i < 40 ? b ^ c ^ d
                     : i < 60 ? (b & c) | (b & d) | (c & d)
                              : b ^ c ^ d;
        uint32_t k = i < 20 ? 0x5a827999 : i < 40 ? 0x6ed9eba1 : i < 60 ? 0x8f1bbcdc : 0xca62c1d6;
        uint32_t next = rotate_left(a, 5) + f + e + k + w[i];
        e = d, d = c, c = rotate_left(b, 30), b = a, a = next;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

static inline size_t base64_encode(char *out, const uint8_t *data, size_t size) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *p = out;
    for (size_t i = 0; i < size; i += 3) {
        size_t have = size - i < 3 ? size - i : 3;
        uint32_t bits = (uint32_t)data[i] << 16 | (have > 1 ? data[i + 1] << 8 : 0) | (have > 2 ? data[i + 2] : 0);
        for (size_t k = 0; k < 4; k++) *p++ = k <= have ? digits[bits >> (18 - 6 * k) & 63] : '=';
    }
    return (size_t)(p - out);
}

/* Sec-WebSocket-Accept for a 24-byte key (RFC 6455 section 4.2.2): always two SHA-1 blocks, as 24 + 36 bytes are 60. */
static inline void ws_accept(const char key[WS_KEY_BYTES], char accept[WS_ACCEPT_BYTES]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    uint8_t text[128] = {0}, digest[20];
    memcpy(text, key, WS_KEY_BYTES);
    memcpy(text + WS_KEY_BYTES, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    text[60] = 0x80;
    store_be(text + 120, 60 * 8, 8);
    sha1_block(h, text);
    sha1_block(h, text + 64);
    for (int i = 0; i < 5; i++) store_be(digest + 4 * i, h[i], 4);
    base64_encode(accept, digest, sizeof digest);
}

/* Reads a frame header; 0 when there are too few bytes yet, else its size. */
static inline unsigned ws_header_read(WsHeader *h, const uint8_t *p, size_t size) {
    if (size < 2) return 0;
    unsigned length = p[1] & 0x7f, extra = length == 126 ? 2 : length == 127 ? 8 : 0;
    h->masked = p[1] >> 7;
    h->header_bytes = (uint8_t)(2 + extra + (h->masked ? 4 : 0));
    if (size < h->header_bytes) return 0;
    h->final = p[0] >> 7;
    h->opcode = p[0] & 0x0f;
    h->payload_bytes = extra ? load_be(p + 2, extra) : length;
    if (h->masked) memcpy(h->mask, p + 2 + extra, 4);
    return h->header_bytes;
}

/* Writes a header for a final frame; `mask` is NULL for a server. Returns the place of the payload. */
static inline uint8_t *ws_header_write(uint8_t *p, uint8_t opcode, uint64_t payload_bytes, const uint8_t *mask) {
    uint8_t flag = mask ? 0x80 : 0;
    *p++ = 0x80 | opcode;
    if (payload_bytes < 126) {
        *p++ = flag | (uint8_t)payload_bytes;
    } else {
        unsigned width = payload_bytes <= 0xffff ? 2 : 8;
        *p++ = flag | (width == 2 ? 126 : 127);
        p = store_be(p, payload_bytes, width);
    }
    if (!mask) return p;
    memcpy(p, mask, 4);
    return p + 4;
}

static inline void ws_mask(uint8_t *p, size_t size, const uint8_t mask[4]) {
    for (size_t i = 0; i < size; i++) p[i] ^= mask[i & 3];
}

#endif
