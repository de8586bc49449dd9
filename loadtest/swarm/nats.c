/* The protocol of nats-server, of which a client's part is lines of text. There are no positions and no answers, so
 * deliveries are counted. A client has subscribed when its PING after SUB is answered.
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "swarm.h"

enum { LINE_BYTES_MAX = 256 };

static const char connect_line[] =
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":true,\"headers\":false,\"protocol\":1}\r\n";

static void send_text(Conn *c, const char *text, int size) { conn_send(c, (const uint8_t *)text, (size_t)size); }

static void subscribe(Conn *c) {
    char lines[LINE_BYTES_MAX];
    const Group *group = &swarm.groups[c->group];
    c->state = CONN_JOINING;
    send_text(c, lines, snprintf(lines, sizeof lines, "%sSUB %s 1\r\nPING\r\n", connect_line, group->name));
}

static void publish(Conn *c, const Group *group, const uint8_t *payload, size_t size) {
    static char message[PAYLOAD_BYTES_MAX + LINE_BYTES_MAX];
    int head = snprintf(message, LINE_BYTES_MAX, "PUB %s %zu\r\n", group->name, size);
    memcpy(message + head, payload, size);
    memcpy(message + head + size, "\r\n", 2);
    send_text(c, message, head + (int)size + 2);
}

/* `MSG subject sid size`; returns the bytes of the whole message, or 0 while it has not come. */
static size_t on_message(Conn *c, const uint8_t *line, const uint8_t *line_end, const uint8_t *end) {
    const uint8_t *last = memrchr(line, ' ', (size_t)(line_end - line));
    size_t size = last ? strtoul((const char *)last + 1, NULL, 10) : 0;
    const uint8_t *payload = line_end + 2;
    if ((size_t)(end - payload) < size + 2) return 0;
    delivery_counted(c, payload, size);
    return (size_t)(payload + size + 2 - line);
}

static void on_line(Conn *c, const uint8_t *line, size_t size) {
    char text[FAILURE_BYTES_MAX];
    if (size >= 4 && memcmp(line, "INFO", 4) == 0 && c->state == CONN_HELLO) subscribe(c);
    else if (size == 4 && memcmp(line, "PONG", 4) == 0 && c->state == CONN_JOINING) session_joined(c, 0);
    else if (size == 4 && memcmp(line, "PING", 4) == 0) {
        swarm.counts.pings++;
        send_text(c, "PONG\r\n", 6);
    } else if (size >= 4 && memcmp(line, "-ERR", 4) == 0) {
        snprintf(text, sizeof text, "%.*s", (int)size, line);
        if (c->state != CONN_LEAVING) conn_fail(c, text);
    }
}

static size_t on_bytes(Conn *c, const uint8_t *data, size_t size) {
    size_t used = 0;
    while (c->state != CONN_CLOSED && used < size) {
        const uint8_t *line = data + used, *line_end = memmem(line, size - used, "\r\n", 2);
        if (!line_end) break;
        size_t step = (size_t)(line_end + 2 - line);
        if (step > 4 && memcmp(line, "MSG ", 4) == 0) step = on_message(c, line, line_end, data + size);
        else on_line(c, line, step - 2);
        if (step == 0) break;
        used += step;
    }
    return used;
}

static void ping(Conn *c) { send_text(c, "PING\r\n", 6); }

static void leave(Conn *c) { conn_close(c); }

const Protocol protocol_nats = {
    .name = "nats",
    .path = "/",
    .opcode = WS_BINARY,
    .stream = true,
    .speaks_first = true,
    .on_bytes = on_bytes,
    .publish = publish,
    .leave = leave,
    .ping = ping,
};
