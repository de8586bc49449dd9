/* The protocol from HELLO to FIN_ACK, and the check of every delivery. */
#include "swarm.h"

enum { ID_HELLO = 1, ID_JOIN = 2, ID_PUBLISH_FIRST = 3 };
enum { SMALL_BODY_BYTES = 2048, REORDER_WINDOW = 64 };

uint8_t payload_pattern[PAYLOAD_BYTES_MAX];

/* ---- the stamp at the head of a payload ---- */

uint64_t stamp_check(const Stamp *stamp) {
    uint64_t x = stamp->intended_ns * 0x9e3779b97f4a7c15u ^ ((uint64_t)stamp->publisher << 32 | stamp->sequence);
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9u;
}

void stamp_write(uint8_t *payload, const Stamp *stamp, bool text) {
    uint8_t raw[sizeof *stamp];
    memcpy(raw, stamp, sizeof raw);
    if (!text) {
        memcpy(payload, raw, sizeof raw);
        return;
    }
    /* '0' + six bits: plain ASCII without control characters, so the string is valid UTF-8. */
    for (unsigned i = 0; i < sizeof raw; i += 3, payload += 4) {
        uint32_t bits = (uint32_t)raw[i] << 16 | (uint32_t)raw[i + 1] << 8 | raw[i + 2];
        for (unsigned k = 0; k < 4; k++) payload[k] = (uint8_t)('0' + (bits >> (18 - 6 * k) & 63));
    }
}

void stamp_read(Stamp *stamp, const uint8_t *payload, bool text) {
    uint8_t raw[sizeof *stamp];
    if (!text) {
        memcpy(stamp, payload, sizeof *stamp);
        return;
    }
    for (unsigned i = 0; i < sizeof raw; i += 3, payload += 4) {
        uint32_t bits = 0;
        for (unsigned k = 0; k < 4; k++) bits = bits << 6 | ((uint32_t)(payload[k] - '0') & 63);
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

static void check_payload(const uint8_t *data, size_t size) {
    const Options *o = &swarm.options;
    Stamp stamp;
    size_t stamp_bytes = o->text ? sizeof stamp / 3 * 4 : sizeof stamp;
    if (size != (size_t)o->payload_bytes ||
        memcmp(data + stamp_bytes, payload_pattern + stamp_bytes, size - stamp_bytes) != 0) {
        swarm.counts.corrupt++;
        return;
    }
    stamp_read(&stamp, data, o->text);
    if (stamp.check != stamp_check(&stamp)) {
        swarm.counts.corrupt++;
        return;
    }
    if (stamp.intended_ns < swarm.window_start_ns || stamp.intended_ns >= swarm.window_end_ns || swarm.phase < HOLDING)
        return;
    swarm.counts.window_delivered++;
    histogram_add(&swarm.latency, swarm.now_ns > stamp.intended_ns ? swarm.now_ns - stamp.intended_ns : 0);
}

static void on_message(Conn *c, Span s) {
    Group *group = &swarm.groups[c->group];
    size_t channel_bytes, data_bytes;
    const uint8_t *channel = span_bytes(&s, &channel_bytes);
    uint64_t offset = span_uint(&s);
    if (s.bad || channel_bytes != group->name_bytes || memcmp(channel, group->name, channel_bytes) != 0) {
        swarm.counts.other_messages++; /* user: and global: channels are joined without asking */
        return;
    }
    if (offset > group->high) group->high = offset;
    if (!check_offset(c, offset)) return;
    swarm.counts.delivered++;
    const uint8_t *data = span_bytes(&s, &data_bytes);
    if (s.bad) swarm.counts.corrupt++;
    else check_payload(data, data_bytes);
}

/* ---- a session's life ---- */

static void send_fin(Conn *c) {
    uint8_t body[16], *p = pack_uint(pack_uint(pack_array(body, 4), FIN), 0);
    p = pack_map(pack_text(p, "bye"), 0);
    conn_send(c, body, (size_t)(p - body));
}

void session_start(Conn *c) {
    uint8_t body[SMALL_BODY_BYTES], *p = pack_uint(pack_uint(pack_array(body, 3), HELLO), ID_HELLO);
    char user[32];
    p = pack_uint(pack_text(pack_map(p, 2), "v"), 1);
    if (swarm.token_count) {
        p = pack_text(pack_text(p, "token"), swarm.tokens[c->index % (unsigned)swarm.token_count]);
    } else {
        snprintf(user, sizeof user, "swarm-%u", c->index + (unsigned)swarm.options.first);
        p = pack_text(pack_text(p, "user"), user);
    }
    c->state = CONN_HELLO;
    conn_send(c, body, (size_t)(p - body));
}

static void on_welcome(Conn *c, Span s) {
    if (c->state != CONN_HELLO) return;
    uint64_t ping_s = span_map_uint(s, "ping", 30);
    if (ping_s) swarm.ping_ns = ping_s * 1000000000u;
    const Group *group = &swarm.groups[c->group];
    uint8_t body[128], *p = pack_uint(pack_uint(pack_array(body, 4), JOIN), ID_JOIN);
    p = pack_map(pack_str(p, group->name, group->name_bytes), 0);
    c->state = CONN_JOINING;
    conn_send(c, body, (size_t)(p - body));
}

static void on_joined(Conn *c, uint64_t offset) {
    Group *group = &swarm.groups[c->group];
    c->state = CONN_JOINED;
    c->request_id = ID_PUBLISH_FIRST;
    if (!c->based) {
        c->based = true;
        c->last_offset = offset;
        c->seen = ~(uint64_t)0;
    }
    if (offset > group->high) group->high = offset;
    swarm.handshakes--;
    swarm.joined++;
    load_on_joined();
}

static void on_reply(Conn *c, uint64_t id, Span s) {
    uint64_t offset = span_map_uint(s, "offset", 0);
    if (id == ID_JOIN && c->state == CONN_JOINING) {
        on_joined(c, offset);
        return;
    }
    if (id < ID_PUBLISH_FIRST || c->in_flight == 0) return;
    Group *group = &swarm.groups[c->group];
    if (offset > group->high) group->high = offset;
    swarm.counts.replies++;
    load_on_reply(c);
}

static void on_error(Conn *c, uint64_t id, Span s) {
    char text[FAILURE_BYTES_MAX];
    size_t size;
    uint64_t code = span_uint(&s);
    const uint8_t *message = span_bytes(&s, &size);
    snprintf(text, sizeof text, "ERROR %llu: %.*s", (unsigned long long)code, message ? (int)size : 0,
             message ? (const char *)message : "");
    if (c->state < CONN_JOINED) {
        conn_fail(c, text);
        return;
    }
    failure_count(text);
    if (id < ID_PUBLISH_FIRST || c->in_flight == 0) return;
    swarm.counts.refused++;
    load_on_reply(c);
}

/* The server ends it: FIN_ACK is owed, and it is the server that closes then. */
static void on_fin(Conn *c, uint64_t code, Span s) {
    static const uint8_t fin_ack[] = {0x91, FIN_ACK};
    size_t size;
    const uint8_t *reason = span_bytes(&s, &size);
    conn_send(c, fin_ack, sizeof fin_ack);
    if (c->state == CONN_LEAVING) return;
    char text[FAILURE_BYTES_MAX];
    snprintf(text, sizeof text, "FIN %llu %.*s", (unsigned long long)code, reason ? (int)size : 0,
             reason ? (const char *)reason : "");
    failure_count(text);
    swarm.disconnected++;
    if (c->state < CONN_JOINED) {
        swarm.aborted = true;
        swarm.handshakes--;
    }
    swarm.in_flight -= c->in_flight;
    c->in_flight = 0;
    c->state = CONN_LEAVING;
}

static void on_ping(Conn *c, uint64_t seq, Span s) {
    uint8_t body[32], *p = pack_uint(pack_uint(pack_array(body, 3), PONG), seq);
    const uint8_t *time = s.at;
    span_skip(&s); /* echoed byte for byte, whatever type it has */
    size_t size = (size_t)(s.at - time);
    if (s.bad || size > 16) return;
    memcpy(p, time, size);
    swarm.counts.pings++;
    conn_send(c, body, (size_t)(p + size - body));
}

void session_on_body(Conn *c, const uint8_t *body, size_t size) {
    Span s = {body, body + size, false};
    unsigned count = span_array(&s);
    uint64_t type = span_uint(&s);
    if (type == MESSAGE && !s.bad) {
        on_message(c, s);
        return;
    }
    uint64_t id = count > 1 && type != EVENT ? span_uint(&s) : 0;
    if (s.bad) {
        conn_fail(c, "a body that is not a frame");
        return;
    }
    switch (type) {
    case WELCOME: on_welcome(c, s); break;
    case REPLY: on_reply(c, id, s); break;
    case ERROR: on_error(c, id, s); break;
    case PING: on_ping(c, id, s); break;
    case FIN: on_fin(c, id, s); break;
    case EVENT: swarm.counts.events++; break;
    case FIN_ACK:
        if (c->state == CONN_LEAVING) conn_close(c);
        break;
    default: break;
    }
}

void session_leave(Conn *c) {
    if (c->state == CONN_LEAVING || c->state == CONN_CLOSED || c->state == CONN_UNUSED) return;
    if (c->state < CONN_HELLO) {
        conn_close(c);
        return;
    }
    if (c->state < CONN_JOINED) swarm.handshakes--;
    c->state = CONN_LEAVING;
    send_fin(c);
}

void session_heartbeat(Conn *c) {
    const Options *o = &swarm.options;
    const Group *group = &swarm.groups[c->group];
    if (c->state != CONN_JOINED) return;
    uint8_t body[128], *p = pack_array(body, 3);
    if (o->ack && c->last_offset > c->acked && swarm.now_ns - c->acked_ns >= (uint64_t)(o->ack_s * 1e9)) {
        p = pack_uint(pack_array(body, 2), ACK);
        p = pack_uint(pack_str(pack_map(p, 1), group->name, group->name_bytes), c->last_offset);
        c->acked = c->last_offset;
        c->acked_ns = swarm.now_ns;
        swarm.counts.acks++;
    } else if (swarm.now_ns - c->sent_ns + 1000000000u > swarm.ping_ns) {
        /* A second early: this sweep comes by once a second. */
        p = pack_uint(pack_uint(pack_uint(p, PING), ++c->ping_seq), swarm.now_ns / 1000000);
    } else {
        return;
    }
    conn_send(c, body, (size_t)(p - body));
}
