/* The part of MessagePack that the load programs write and read.
 *
 * Writers take the place to write at and return the place after it; the caller has made room. Readers walk a Span and
 * never pass its end: a value that does not fit or has another type sets `bad`, and every later read yields zero.
 */
#ifndef LOADTEST_MSGPACK_H
#define LOADTEST_MSGPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const uint8_t *at; /* borrowed until the buffer is read into again */
    const uint8_t *end;
    bool bad;
} Span;

static inline uint8_t *store_be(uint8_t *p, uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++) p[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
    return p + bytes;
}

static inline uint64_t load_be(const uint8_t *p, unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++) value = value << 8 | p[i];
    return value;
}

static inline uint8_t *pack_array(uint8_t *p, unsigned count) {
    *p = (uint8_t)(0x90 | count);
    return p + 1;
}
static inline uint8_t *pack_map(uint8_t *p, unsigned count) {
    *p = (uint8_t)(0x80 | count);
    return p + 1;
}

static inline uint8_t *pack_uint(uint8_t *p, uint64_t value) {
    if (value < 0x80) {
        *p = (uint8_t)value;
        return p + 1;
    }
    if (value <= 0xff) {
        *p = 0xcc;
        return store_be(p + 1, value, 1);
    }
    if (value <= 0xffff) {
        *p = 0xcd;
        return store_be(p + 1, value, 2);
    }
    if (value <= 0xffffffff) {
        *p = 0xce;
        return store_be(p + 1, value, 4);
    }
    *p = 0xcf;
    return store_be(p + 1, value, 8);
}

static inline uint8_t *pack_bytes(uint8_t *p, uint8_t type8, const void *data, size_t size) {
    /* The 8, 16 and 32 bit forms of bin and str have consecutive type bytes. */
    unsigned width = size <= 0xff ? 1 : size <= 0xffff ? 2 : 4;
    *p = (uint8_t)(type8 + (width == 1 ? 0 : width == 2 ? 1 : 2));
    p = store_be(p + 1, size, width);
    memcpy(p, data, size);
    return p + size;
}

static inline uint8_t *pack_bin(uint8_t *p, const void *data, size_t size) { return pack_bytes(p, 0xc4, data, size); }

static inline uint8_t *pack_str(uint8_t *p, const void *text, size_t size) {
    if (size >= 32) return pack_bytes(p, 0xd9, text, size);
    *p = (uint8_t)(0xa0 | size);
    memcpy(p + 1, text, size);
    return p + 1 + size;
}

static inline uint8_t *pack_text(uint8_t *p, const char *text) { return pack_str(p, text, strlen(text)); }

static inline size_t span_left(const Span *s) { return (size_t)(s->end - s->at); }

/* Takes `bytes` from the span; NULL and `bad` when there are fewer. */
static inline const uint8_t *span_take(Span *s, size_t bytes) {
    if (s->bad || span_left(s) < bytes) {
        s->bad = true;
        return NULL;
    }
    const uint8_t *p = s->at;
    s->at += bytes;
    return p;
}

static inline uint64_t span_be(Span *s, unsigned bytes) {
    const uint8_t *p = span_take(s, bytes);
    return p ? load_be(p, bytes) : 0;
}

static inline unsigned span_container(Span *s, uint8_t fix, uint8_t type16) {
    uint8_t type = (uint8_t)span_be(s, 1);
    if ((type & 0xf0) == fix) return type & 0x0f;
    if (type == type16) return (unsigned)span_be(s, 2);
    s->bad = true;
    return 0;
}

static inline unsigned span_array(Span *s) { return span_container(s, 0x90, 0xdc); }
static inline unsigned span_map(Span *s) { return span_container(s, 0x80, 0xde); }

static inline uint64_t span_uint(Span *s) {
    uint8_t type = (uint8_t)span_be(s, 1);
    if (type < 0x80) return type;
    if (type >= 0xcc && type <= 0xcf) return span_be(s, 1u << (type - 0xcc));
    /* Signed forms are legal for a value that happens to be positive. */
    if (type >= 0xd0 && type <= 0xd3) return span_be(s, 1u << (type - 0xd0));
    s->bad = true;
    return 0;
}

/* A str or a bin; the bytes are borrowed from the span's buffer. */
static inline const uint8_t *span_bytes(Span *s, size_t *size) {
    uint8_t type = (uint8_t)span_be(s, 1);
    if ((type & 0xe0) == 0xa0) *size = type & 0x1f;
    else if (type >= 0xc4 && type <= 0xc6) *size = span_be(s, 1u << (type - 0xc4));
    else if (type >= 0xd9 && type <= 0xdb) *size = span_be(s, 1u << (type - 0xd9));
    else s->bad = true;
    if (s->bad) *size = 0;
    return span_take(s, *size);
}

/* Steps over one value. Containers are walked with a count of values still to come, so depth costs nothing. */
static inline void span_skip(Span *s) {
    for (uint64_t left = 1; left > 0 && !s->bad; left--) {
        uint8_t type = (uint8_t)span_be(s, 1);
        if (type < 0x80 || type >= 0xe0 || (type >= 0xc0 && type <= 0xc3)) continue;
        if (type < 0x90) left += 2u * (type & 0x0f);
        else if (type < 0xa0) left += type & 0x0f;
        else if (type < 0xc0) span_take(s, type & 0x1f);
        else if (type <= 0xc6) span_take(s, span_be(s, 1u << (type - 0xc4)));
        else if (type <= 0xc9) span_take(s, 1 + span_be(s, 1u << (type - 0xc7)));
        else if (type <= 0xcb) span_take(s, type == 0xca ? 4 : 8);
        else if (type <= 0xd3) span_take(s, 1u << ((type - 0xcc) & 3));
        else if (type <= 0xd8) span_take(s, 1 + (1u << (type - 0xd4)));
        else if (type <= 0xdb) span_take(s, span_be(s, 1u << (type - 0xd9)));
        else if (type <= 0xdd) left += span_be(s, type == 0xdc ? 2 : 4);
        else left += 2 * span_be(s, type == 0xde ? 2 : 4);
    }
}

/* Looks an unsigned value up in the map at the span; `missing` when it is not there. The caller's span stays. */
static inline uint64_t span_map_uint(Span s, const char *key, uint64_t missing) {
    unsigned count = span_map(&s);
    for (unsigned i = 0; i < count && !s.bad; i++) {
        size_t size;
        const uint8_t *name = span_bytes(&s, &size);
        if (name && size == strlen(key) && memcmp(name, key, size) == 0) {
            uint64_t value = span_uint(&s);
            return s.bad ? missing : value;
        }
        span_skip(&s);
    }
    return missing;
}

#endif
