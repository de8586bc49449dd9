/* Our protocol from HELLO to FIN_ACK, and what all protocols share of a session. */
#include "swarm.h"

enum { ID_HELLO = 1, ID_JOIN = 2, ID_PUBLISH_FIRST = 3 };
enum { SMALL_BODY_BYTES = 2048 };

/* ---- what all protocols share ---- */

void session_joined(Conn *c, uint64_t offset) {
    const Options *o = &swarm.options;
    Group *group = &swarm.groups[c->group];
    c->state = CONN_JOINED;
    c->request_id = ID_PUBLISH_FIRST;
    if (!c->based) {
        c->based = true;
        c->last_offset = offset;
        c->seen = ~(uint64_t)0;
    }
    if (offset > group->high) group->high = offset;
    uint64_t intended_ns = swarm.connect_start_ns + (uint64_t)((double)c->index * 1e9 / o->connect_rate);
    histogram_add(&swarm.connecting, swarm.now_ns > intended_ns ? swarm.now_ns - intended_ns : 0);
    swarm.handshakes--;
    swarm.joined++;
    if ((int)(c->index % (unsigned)o->members) >= o->members - o->slow) conn_mute(c);
    load_on_joined();
}

void session_refused(Conn *c, const char *text, bool of_publish) {
    if (c->state < CONN_JOINED) {
        conn_fail(c, text);
        return;
    }
    failure_count(text);
    if (!of_publish || c->in_flight == 0) return;
    swarm.counts.refused++;
    load_on_reply(c);
}

void session_leave(Conn *c) {
    if (c->state == CONN_LEAVING || c->state == CONN_CLOSED || c->state == CONN_UNUSED) return;
    if (c->state < CONN_HELLO || c->muted) {
        conn_close(c);
        return;
    }
    if (c->state < CONN_JOINED) swarm.handshakes--;
    c->state = CONN_LEAVING;
    swarm.options.protocol->leave(c);
}

void session_user(const Conn *c, char *user, size_t size) {
    snprintf(user, size, "swarm-%u", c->index + (unsigned)swarm.options.first);
}

static void send_ack(Conn *c) {
    const Group *group = &swarm.groups[c->group];
    uint8_t body[128], *p = pack_uint(pack_array(body, 2), ACK);
    p = pack_uint(pack_str(pack_map(p, 1), group->name, group->name_bytes), c->last_offset);
    c->acked = c->last_offset;
    c->acked_ns = swarm.now_ns;
    swarm.counts.acks++;
    conn_send(c, body, (size_t)(p - body));
}

void session_heartbeat(Conn *c) {
    const Options *o = &swarm.options;
    if (c->state != CONN_JOINED || c->muted) return;
    if (o->ack && c->last_offset > c->acked && swarm.now_ns - c->acked_ns >= (uint64_t)(o->ack_s * 1e9)) send_ack(c);
    /* A second early: this sweep comes by once a second. */
    else if (swarm.now_ns - c->sent_ns + 1000000000u > swarm.ping_ns) o->protocol->ping(c);
}

/* ---- our protocol ---- */

static void on_message(Conn *c, Span s) {
    const Group *group = &swarm.groups[c->group];
    size_t channel_bytes, data_bytes;
    const uint8_t *channel = span_bytes(&s, &channel_bytes);
    uint64_t offset = span_uint(&s);
    if (s.bad || channel_bytes != group->name_bytes || memcmp(channel, group->name, channel_bytes) != 0) {
        swarm.counts.other_messages++; /* user: and global: channels are joined without asking */
        if (channel_bytes > 7 && memcmp(channel, "global:", 7) == 0) global_on_message(c, s);
        return;
    }
    const uint8_t *data = span_bytes(&s, &data_bytes);
    delivery_positioned(c, offset, s.bad ? NULL : data, data_bytes);
}

static void send_fin(Conn *c) {
    uint8_t body[16], *p = pack_uint(pack_uint(pack_array(body, 4), FIN), 0);
    p = pack_map(pack_text(p, "bye"), 0);
    conn_send(c, body, (size_t)(p - body));
}

static void send_hello(Conn *c) {
    uint8_t body[SMALL_BODY_BYTES], *p = pack_uint(pack_uint(pack_array(body, 3), HELLO), ID_HELLO);
    char user[32];
    p = pack_uint(pack_text(pack_map(p, 2), "v"), 1);
    if (swarm.token_count) {
        p = pack_text(pack_text(p, "token"), swarm.tokens[c->index % (unsigned)swarm.token_count]);
    } else {
        session_user(c, user, sizeof user);
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

static void on_reply(Conn *c, uint64_t id, Span s) {
    uint64_t offset = span_map_uint(s, "offset", 0);
    if (id == ID_JOIN && c->state == CONN_JOINING) {
        session_joined(c, offset);
        return;
    }
    if (id < ID_PUBLISH_FIRST || c->in_flight == 0) return;
    Group *group = &swarm.groups[c->target];
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
    session_refused(c, text, id >= ID_PUBLISH_FIRST);
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
        load_on_failed();
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

static size_t on_body(Conn *c, const uint8_t *body, size_t size) {
    Span s = {body, body + size, false};
    unsigned count = span_array(&s);
    uint64_t type = span_uint(&s);
    if (type == MESSAGE && !s.bad) {
        on_message(c, s);
        return size;
    }
    uint64_t id = count > 1 && type != EVENT ? span_uint(&s) : 0;
    if (s.bad) {
        conn_fail(c, "a body that is not a frame");
        return size;
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
    return size;
}

static void send_publish(Conn *c, const Group *group, const uint8_t *payload, size_t size) {
    static uint8_t body[PAYLOAD_BYTES_MAX + 256], *p;
    p = pack_uint(pack_uint(pack_array(body, 5), PUBLISH), c->request_id);
    p = pack_str(p, group->name, group->name_bytes);
    p = swarm.options.text ? pack_str(p, payload, size) : pack_bin(p, payload, size);
    p = pack_map(p, 0);
    conn_send(c, body, (size_t)(p - body));
}

static void send_ping(Conn *c) {
    uint8_t body[32], *p = pack_uint(pack_uint(pack_array(body, 3), PING), ++c->ping_seq);
    p = pack_uint(p, swarm.now_ns / 1000000);
    conn_send(c, body, (size_t)(p - body));
}

const Protocol protocol_holdfast = {
    .name = "holdfast",
    .path = "/ws",
    .opcode = WS_BINARY,
    .positions = true,
    .answers = true,
    .start = send_hello,
    .on_bytes = on_body,
    .publish = send_publish,
    .leave = send_fin,
    .ping = send_ping,
};
