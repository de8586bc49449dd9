/* The check of every delivery: the stamp in its payload, and its position or the count. */
#include "swarm.h"

enum { REORDER_WINDOW = 64 };

uint8_t payload_pattern[PAYLOAD_BYTES_MAX];

/* ---- the stamp at the head of a payload ---- */

static uint64_t stamp_check(const Stamp *stamp) {
    uint64_t x = stamp->intended_ns * 0x9e3779b97f4a7c15u ^ ((uint64_t)stamp->publisher << 32 | stamp->sequence);
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9u;
}

static uint8_t letter_of(uint32_t bits) { return bits == '\\' - '0' ? '~' : (uint8_t)('0' + bits); }

static uint32_t bits_of(uint8_t letter) { return (letter == '~' ? '\\' - '0' : (uint32_t)(letter - '0')) & 63; }

void stamp_write(uint8_t *payload, Stamp stamp, bool text) {
    uint8_t raw[sizeof stamp];
    stamp.check = stamp_check(&stamp);
    memcpy(raw, &stamp, sizeof raw);
    if (!text) {
        memcpy(payload, raw, sizeof raw);
        return;
    }
    /* '0' + six bits: plain ASCII without control characters. JSON would escape the one backslash of these. */
    for (unsigned i = 0; i < sizeof raw; i += 3, payload += 4) {
        uint32_t bits = (uint32_t)raw[i] << 16 | (uint32_t)raw[i + 1] << 8 | raw[i + 2];
        for (unsigned k = 0; k < 4; k++) payload[k] = letter_of(bits >> (18 - 6 * k) & 63);
    }
}

static void stamp_read(Stamp *stamp, const uint8_t *payload, bool text) {
    uint8_t raw[sizeof *stamp];
    if (!text) {
        memcpy(stamp, payload, sizeof *stamp);
        return;
    }
    for (unsigned i = 0; i < sizeof raw; i += 3, payload += 4) {
        uint32_t bits = 0;
        for (unsigned k = 0; k < 4; k++) bits = bits << 6 | bits_of(payload[k]);
        raw[i] = (uint8_t)(bits >> 16), raw[i + 1] = (uint8_t)(bits >> 8), raw[i + 2] = (uint8_t)bits;
    }
    memcpy(stamp, raw, sizeof raw);
}

/* ---- deliveries ---- */

/* Not the next offset. Offsets jumped over are lost until they come; whether an old one is late or repeated is known
 * for the last 64, and beyond that it is called repeated. False: repeated. */
static bool check_unexpected(Conn *c, uint64_t offset) {
    Counts *n = &swarm.counts;
    if (offset > c->last_offset) {
        uint64_t step = offset - c->last_offset;
        n->lost += step - 1;
        c->seen = (step < REORDER_WINDOW ? c->seen << step : 0) | 1;
        c->last_offset = offset;
        return true;
    }
    uint64_t back = c->last_offset - offset;
    if (back < REORDER_WINDOW && !(c->seen >> back & 1)) {
        c->seen |= (uint64_t)1 << back;
        n->out_of_order++;
        n->lost--;
        return true;
    }
    n->repeated++;
    return false;
}

static bool check_offset(Conn *c, uint64_t offset) {
    if (__builtin_expect(offset == c->last_offset + 1 && c->based, 1)) {
        c->last_offset = offset;
        c->seen = c->seen << 1 | 1;
        return true;
    }
    if (c->based) return check_unexpected(c, offset);
    /* A message may overtake the answer to JOIN; then it is where this member begins. */
    c->based = true;
    c->last_offset = offset;
    c->seen = ~(uint64_t)0;
    return true;
}

/* The publisher, or -1 when the payload is not what was published. */
static int64_t check_payload(const uint8_t *data, size_t size) {
    const Options *o = &swarm.options;
    Stamp stamp;
    size_t stamp_bytes = o->text ? sizeof stamp / 3 * 4 : sizeof stamp;
    if (size != (size_t)o->payload_bytes ||
        memcmp(data + stamp_bytes, payload_pattern + stamp_bytes, size - stamp_bytes) != 0) {
        swarm.counts.corrupt++;
        return -1;
    }
    stamp_read(&stamp, data, o->text);
    if (stamp.check != stamp_check(&stamp)) {
        swarm.counts.corrupt++;
        return -1;
    }
    if (stamp.intended_ns < swarm.window_start_ns || stamp.intended_ns >= swarm.window_end_ns || swarm.phase < HOLDING)
        return stamp.publisher;
    swarm.counts.window_delivered++;
    histogram_add(&swarm.latency, swarm.now_ns > stamp.intended_ns ? swarm.now_ns - stamp.intended_ns : 0);
    return stamp.publisher;
}

void delivery_positioned(Conn *c, uint64_t offset, const uint8_t *data, size_t size) {
    Group *group = &swarm.groups[c->group];
    if (offset > group->high) group->high = offset;
    if (!check_offset(c, offset)) return;
    swarm.counts.delivered++;
    if (data) check_payload(data, size);
    else swarm.counts.corrupt++;
}

void delivery_counted(Conn *c, const uint8_t *data, size_t size) {
    if (c->last_offset == swarm.groups[c->group].high) {
        swarm.counts.repeated++;
        return;
    }
    c->last_offset++;
    swarm.counts.delivered++;
    int64_t publisher = check_payload(data, size);
    if (!swarm.options.protocol->answers && publisher == c->index && c->in_flight) load_on_reply(c);
}
