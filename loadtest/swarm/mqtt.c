/* MQTT 3.1.1 over WebSocket, at most once (QoS 0): no positions and no answers, so deliveries are counted. */
#include "swarm.h"

enum {
    CONNECT = 0x10,
    CONNACK = 0x20,
    PUBLISHED = 0x30,
    SUBSCRIBE = 0x82,
    SUBACK = 0x90,
    PINGREQ = 0xc0,
    PINGRESP = 0xd0,
    DISCONNECT = 0xe0
};
enum { KEEP_ALIVE_S = 60, SMALL_BYTES = 256 };

static uint8_t *store_string(uint8_t *p, const char *text, size_t size) {
    p = store_be(p, size, 2);
    memcpy(p, text, size);
    return p + size;
}

static uint8_t *store_head(uint8_t *p, uint8_t type, size_t rest) {
    *p++ = type;
    do {
        *p++ = (uint8_t)(rest % 128 | (rest >= 128 ? 0x80 : 0));
        rest /= 128;
    } while (rest);
    return p;
}

static void send_packet(Conn *c, uint8_t type, const uint8_t *rest, size_t size) {
    static uint8_t packet[PAYLOAD_BYTES_MAX + SMALL_BYTES + 8], *p;
    p = store_head(packet, type, size);
    if (size) memcpy(p, rest, size);
    conn_send(c, packet, (size_t)(p - packet) + size);
}

static void start(Conn *c) {
    uint8_t rest[SMALL_BYTES], *p = store_string(rest, "MQTT", 4);
    char user[32];
    session_user(c, user, sizeof user);
    *p++ = 4; /* the level of 3.1.1 */
    *p++ = 2; /* a clean session */
    p = store_string(store_be(p, KEEP_ALIVE_S, 2), user, strlen(user));
    send_packet(c, CONNECT, rest, (size_t)(p - rest));
}

static void subscribe(Conn *c) {
    const Group *group = &swarm.groups[c->group];
    uint8_t rest[SMALL_BYTES], *p = store_string(store_be(rest, 1, 2), group->name, group->name_bytes);
    *p++ = 0;
    c->state = CONN_JOINING;
    send_packet(c, SUBSCRIBE, rest, (size_t)(p - rest));
}

static void publish(Conn *c, const Group *group, const uint8_t *payload, size_t size) {
    static uint8_t rest[PAYLOAD_BYTES_MAX + SMALL_BYTES], *p;
    p = store_string(rest, group->name, group->name_bytes);
    memcpy(p, payload, size);
    send_packet(c, PUBLISHED, rest, (size_t)(p - rest) + size);
}

static void on_published(Conn *c, const uint8_t *rest, size_t size) {
    size_t topic_bytes = size >= 2 ? load_be(rest, 2) : size;
    if (topic_bytes + 2 > size) conn_fail(c, "mqtt: a PUBLISH without a topic");
    else delivery_counted(c, rest + 2 + topic_bytes, size - 2 - topic_bytes);
}

static void on_packet(Conn *c, uint8_t type, const uint8_t *rest, size_t size) {
    char text[FAILURE_BYTES_MAX];
    unsigned code = size ? rest[size - 1] : 0;
    if ((type & 0xf0) == PUBLISHED) on_published(c, rest, size);
    else if (type == CONNACK && code == 0 && c->state == CONN_HELLO) subscribe(c);
    else if (type == SUBACK && code == 0 && c->state == CONN_JOINING) session_joined(c, 0);
    else if (type == CONNACK || type == SUBACK) {
        snprintf(text, sizeof text, "mqtt: %s says %u", type == CONNACK ? "CONNACK" : "SUBACK", code);
        conn_fail(c, text);
    }
}

/* The bytes of the packet's head, with the size of its rest; 0 while they have not come. */
static size_t read_head(const uint8_t *data, size_t size, size_t *rest_bytes) {
    *rest_bytes = 0;
    for (size_t i = 1; i < size && i <= 4; i++) {
        *rest_bytes |= (size_t)(data[i] & 0x7f) << (7 * (i - 1));
        if (!(data[i] & 0x80)) return i + 1;
    }
    return 0;
}

static size_t on_bytes(Conn *c, const uint8_t *data, size_t size) {
    size_t used = 0, rest_bytes, head;
    while (c->state != CONN_CLOSED && (head = read_head(data + used, size - used, &rest_bytes))) {
        if (size - used < head + rest_bytes) break;
        on_packet(c, data[used], data + used + head, rest_bytes);
        used += head + rest_bytes;
    }
    return used;
}

static void ping(Conn *c) { send_packet(c, PINGREQ, NULL, 0); }

static void leave(Conn *c) {
    send_packet(c, DISCONNECT, NULL, 0);
    conn_close(c);
}

const Protocol protocol_mqtt = {
    .name = "mqtt",
    .path = "/mqtt",
    .subprotocol = "mqtt",
    .opcode = WS_BINARY,
    .stream = true,
    .start = start,
    .on_bytes = on_bytes,
    .publish = publish,
    .leave = leave,
    .ping = ping,
};
