/* socket.io over WebSocket (Engine.IO 4), events as text: `join` and `publish` are acknowledged by the server's program,
 * `message` brings a delivery. There are no positions, so deliveries are counted; it is the server that pings.
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "swarm.h"

enum { ID_JOIN = 1, HEAD_BYTES_MAX = 192 };

static void send_text(Conn *c, const char *text, int size) { conn_send(c, (const uint8_t *)text, (size_t)size); }

static void connect_namespace(Conn *c) { send_text(c, "40", 2); }

static void join(Conn *c) {
    char text[HEAD_BYTES_MAX];
    c->state = CONN_JOINING;
    send_text(c, text, snprintf(text, sizeof text, "42%d[\"join\",\"%s\"]", ID_JOIN, swarm.groups[c->group].name));
}

static void publish(Conn *c, const Group *group, const uint8_t *payload, size_t size) {
    static char text[PAYLOAD_BYTES_MAX + HEAD_BYTES_MAX];
    int head = snprintf(text, HEAD_BYTES_MAX, "42%llu[\"publish\",\"%s\",\"", (unsigned long long)c->request_id,
                        group->name);
    memcpy(text + head, payload, size);
    memcpy(text + head + size, "\"]", 2);
    send_text(c, text, head + (int)size + 2);
}

static void on_acknowledged(Conn *c, const uint8_t *id) {
    if (c->state == CONN_JOINING && strtoul((const char *)id, NULL, 10) == ID_JOIN) session_joined(c, 0);
    else if (c->in_flight) {
        swarm.counts.replies++;
        load_on_reply(c);
    }
}

/* `["message","<channel>","<payload>"]`: what we publish has nothing in it that JSON would escape. */
static void on_event(Conn *c, const uint8_t *text, size_t size) {
    char head[HEAD_BYTES_MAX];
    size_t head_bytes =
        (size_t)snprintf(head, sizeof head, "[\"message\",\"%s\",\"", swarm.groups[c->group].name);
    if (size < head_bytes + 2 || memcmp(text, head, head_bytes) != 0) swarm.counts.other_messages++;
    else delivery_counted(c, text + head_bytes, size - head_bytes - 2);
}

static size_t on_text(Conn *c, const uint8_t *text, size_t size) {
    char failure[FAILURE_BYTES_MAX];
    if (size >= 2 && memcmp(text, "42", 2) == 0) on_event(c, text + 2, size - 2);
    else if (size >= 3 && memcmp(text, "43", 2) == 0) on_acknowledged(c, text + 2);
    else if (size >= 2 && memcmp(text, "40", 2) == 0 && c->state == CONN_HELLO) join(c);
    else if (size == 1 && *text == '2') {
        swarm.counts.pings++;
        send_text(c, "3", 1);
    } else if (size >= 1 && *text == '0' && c->state == CONN_HELLO) connect_namespace(c);
    else if (size >= 2 && (memcmp(text, "41", 2) == 0 || memcmp(text, "44", 2) == 0) && c->state != CONN_LEAVING) {
        snprintf(failure, sizeof failure, "socket.io: %.*s", (int)size, text);
        conn_fail(c, failure);
    }
    return size;
}

/* It is the server that pings; a client only answers. */
static void ping(Conn *c) { (void)c; }

static void leave(Conn *c) {
    send_text(c, "41", 2);
    conn_close(c);
}

const Protocol protocol_socketio = {
    .name = "socketio",
    .path = "/socket.io/?EIO=4&transport=websocket",
    .opcode = WS_TEXT,
    .answers = true,
    .speaks_first = true,
    .on_bytes = on_text,
    .publish = publish,
    .leave = leave,
    .ping = ping,
};
