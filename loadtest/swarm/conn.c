/* Sockets: paced connecting, the WebSocket handshake, cutting frames out of one shared receive buffer, sending. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "swarm.h"

enum { SLOW_RECEIVE_BYTES = 4096 };

static uint8_t recv_buffer[RECV_BYTES];

/* While a connection's frames are being read, what it sends gathers here and leaves in one call: a publisher that gets
 * eight answers at once sends its next eight publishes at once. */
static uint8_t cork_buffer[CORK_BYTES];
static size_t cork_bytes;
static Conn *corked;

static uint32_t mask_state = 0x9e3779b9;

static void buffer_append(Buffer *b, const void *data, size_t size) {
    if (size == 0) return;
    if (b->size + size > b->capacity) {
        size_t capacity = b->capacity ? b->capacity : 256;
        while (capacity < b->size + size) capacity *= 2;
        uint8_t *grown = realloc(b->data, capacity);
        if (!grown) {
            fprintf(stderr, "swarm: out of memory\n");
            exit(1);
        }
        b->data = grown;
        b->capacity = (uint32_t)capacity;
    }
    memcpy(b->data + b->size, data, size);
    b->size += (uint32_t)size;
}

static void buffer_free(Buffer *b) {
    free(b->data);
    *b = (Buffer){0};
}

/* ---- ends ---- */

static bool handshaking(const Conn *c) { return c->state >= CONN_CONNECTING && c->state < CONN_JOINED; }

void conn_close(Conn *c) {
    if (c->state == CONN_CLOSED) return;
    if (handshaking(c)) swarm.handshakes--;
    swarm.in_flight -= c->in_flight;
    c->in_flight = 0;
    close(c->fd);
    c->fd = -1;
    c->state = CONN_CLOSED;
    buffer_free(&c->partial);
    buffer_free(&c->stream);
    buffer_free(&c->backlog);
    swarm.alive--;
    load_on_closed();
}

void conn_fail(Conn *c, const char *what) {
    if (c->state == CONN_CLOSED) return;
    failure_count(what);
    swarm.disconnected++;
    bool never_joined = handshaking(c);
    conn_close(c);
    if (never_joined) load_on_failed();
}

static void fail_errno(Conn *c, const char *call, int error) {
    char text[FAILURE_BYTES_MAX];
    snprintf(text, sizeof text, "%s: %s", call, strerror(error));
    conn_fail(c, text);
}

/* ---- sending ---- */

static void watch(Conn *c) {
    uint32_t events = (c->muted ? EPOLLRDHUP : EPOLLIN) | (c->writable_wanted ? EPOLLOUT : 0);
    struct epoll_event event = {.events = events, .data.u32 = c->index};
    epoll_ctl(swarm.epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void want_writable(Conn *c, bool wanted) {
    if (c->writable_wanted == wanted) return;
    c->writable_wanted = wanted;
    watch(c);
}

void conn_mute(Conn *c) {
    c->muted = true;
    watch(c);
}

static void send_bytes(Conn *c, const uint8_t *data, size_t size) {
    if (c == corked && cork_bytes + size <= CORK_BYTES) {
        memcpy(cork_buffer + cork_bytes, data, size);
        cork_bytes += size;
        return;
    }
    ssize_t got = c->backlog.size ? 0 : send(c->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (got < 0 && errno != EAGAIN) {
        fail_errno(c, "send", errno);
        return;
    }
    size_t sent = got < 0 ? 0 : (size_t)got;
    if (sent == size) return;
    buffer_append(&c->backlog, data + sent, size - sent);
    if (c->backlog.size > BACKLOG_BYTES_MAX) conn_fail(c, "backlog: the server does not read");
    else want_writable(c, true);
}

static void uncork(Conn *c) {
    corked = NULL;
    size_t size = cork_bytes;
    cork_bytes = 0;
    if (size && c->state != CONN_CLOSED) send_bytes(c, cork_buffer, size);
}

static void drain_backlog(Conn *c) {
    ssize_t got = send(c->fd, c->backlog.data, c->backlog.size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (got < 0) return; /* an error shows at the next read */
    memmove(c->backlog.data, c->backlog.data + got, c->backlog.size - (size_t)got);
    c->backlog.size -= (size_t)got;
    if (c->backlog.size) return;
    buffer_free(&c->backlog);
    want_writable(c, false);
}

static void send_websocket(Conn *c, uint8_t opcode, const uint8_t *payload, size_t size) {
    static uint8_t frame[FRAME_BYTES_MAX];
    uint8_t mask[4];
    mask_state ^= mask_state << 13, mask_state ^= mask_state >> 17, mask_state ^= mask_state << 5;
    memcpy(mask, &mask_state, 4);
    uint8_t *p = ws_header_write(frame, opcode, size, mask);
    memcpy(p, payload, size);
    ws_mask(p, size, mask);
    send_bytes(c, frame, (size_t)(p + size - frame));
}

void conn_send(Conn *c, const uint8_t *body, size_t size) {
    static uint8_t frame[FRAME_BYTES_MAX];
    c->sent_ns = swarm.now_ns;
    if (!swarm.options.tcp) {
        send_websocket(c, swarm.options.protocol->opcode, body, size);
        return;
    }
    memcpy(store_be(frame, size, 4), body, size);
    send_bytes(c, frame, size + 4);
}

/* ---- connecting ---- */

/* 16 bytes that differ between connections: the peer must answer to this one, not with a stored line. */
static void websocket_key(const Conn *c, char key[WS_KEY_BYTES]) {
    uint8_t raw[16];
    uint64_t x = (c->index + (uint64_t)swarm.options.first + 1) * 0x9e3779b97f4a7c15u;
    store_be(raw, x, 8);
    store_be(raw + 8, x * 0xbf58476d1ce4e5b9u ^ x >> 29, 8);
    base64_encode(key, raw, sizeof raw);
}

static void send_upgrade(Conn *c) {
    char key[WS_KEY_BYTES], request[512];
    const Options *o = &swarm.options;
    const char *subprotocol = o->protocol->subprotocol;
    websocket_key(c, key);
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: %.*s\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
                        o->protocol->path, o->hosts[c->index % (unsigned)o->host_count],
                        o->ports[c->index % (unsigned)o->port_count], WS_KEY_BYTES, key,
                        subprotocol ? "Sec-WebSocket-Protocol: " : "", subprotocol ? subprotocol : "",
                        subprotocol ? "\r\n" : "");
    c->state = CONN_UPGRADING;
    send_bytes(c, (uint8_t *)request, (size_t)size);
}

static int bind_source(int fd, uint32_t global_index) {
    uint32_t source = global_index / SOURCE_CONNECTIONS;
    if (source == 0) return 0;
    /* The port is chosen at connect(), per destination; without this option bind() would take one from all of them. */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + source)};
    return bind(fd, (struct sockaddr *)&address, sizeof address);
}

static bool slow(const Conn *c) {
    const Options *o = &swarm.options;
    return (int)(c->index % (unsigned)o->members) >= o->members - o->slow;
}

static void conn_start(Conn *c) {
    const Options *o = &swarm.options;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)o->ports[c->index % (unsigned)o->port_count])};
    inet_pton(AF_INET, o->hosts[c->index % (unsigned)o->host_count], &address.sin_addr);
    swarm.alive++;
    swarm.handshakes++;
    c->state = CONN_CONNECTING;
    c->deadline_ns = swarm.now_ns + (uint64_t)(o->handshake_s * 1e9);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        fail_errno(c, "socket", errno);
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    /* A slow member's kernel must not read on its behalf what a whole run sends. */
    if (slow(c)) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &(int){SLOW_RECEIVE_BYTES}, sizeof(int));
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.u32 = c->index};
    c->writable_wanted = true;
    if (bind_source(c->fd, c->index + (uint32_t)o->first)) fail_errno(c, "bind", errno);
    else if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail_errno(c, "connect", errno);
    else if (epoll_ctl(swarm.epoll_fd, EPOLL_CTL_ADD, c->fd, &event)) fail_errno(c, "epoll_ctl", errno);
}

void conn_start_due(void) {
    /* A storm asks what happens when nobody waits for a busy server. */
    int handshakes_max = swarm.options.workload == WORKLOAD_STORM ? swarm.conn_count : swarm.options.handshakes_max;
    uint64_t due = (uint64_t)((double)(swarm.now_ns - swarm.connect_start_ns) * 1e-9 * swarm.options.connect_rate) + 1;
    while (swarm.started < swarm.conn_count && (uint64_t)swarm.started < due && swarm.handshakes < handshakes_max &&
           !swarm.aborted)
        conn_start(&swarm.conns[swarm.started++]);
}

static void session_start(Conn *c) {
    const Protocol *protocol = swarm.options.protocol;
    c->state = CONN_HELLO;
    if (!protocol->speaks_first) protocol->start(c);
}

static void on_connected(Conn *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        fail_errno(c, "connect", error);
        return;
    }
    want_writable(c, false);
    if (swarm.options.tcp) session_start(c);
    else send_upgrade(c);
}

/* ---- receiving: each cutter returns the bytes used; the connection may be closed after it ---- */

static size_t cut_upgrade(Conn *c, uint8_t *data, size_t size) {
    uint8_t *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) {
        if (size > 8192) conn_fail(c, "upgrade: answer too long");
        return 0;
    }
    char key[WS_KEY_BYTES], accept[WS_ACCEPT_BYTES + 1], text[FAILURE_BYTES_MAX];
    websocket_key(c, key);
    ws_accept(key, accept);
    size_t used = (size_t)(end + 4 - data);
    if (size < 12 || memcmp(data, "HTTP/1.1 101", 12) != 0) {
        snprintf(text, sizeof text, "upgrade refused: %.*s", (int)strcspn((char *)data, "\r"), data);
        conn_fail(c, text);
    } else if (!memmem(data, used, accept, WS_ACCEPT_BYTES)) {
        conn_fail(c, "upgrade: wrong Sec-WebSocket-Accept");
    } else {
        session_start(c);
    }
    return used;
}

static void on_websocket_control(Conn *c, const WsHeader *h, uint8_t *payload) {
    char text[FAILURE_BYTES_MAX];
    if (h->opcode == WS_PING) send_websocket(c, WS_PONG, payload, h->payload_bytes);
    if (h->opcode != WS_CLOSE) return;
    unsigned status = h->payload_bytes >= 2 ? (unsigned)load_be(payload, 2) : 1005;
    if (c->state == CONN_LEAVING) {
        conn_close(c);
        return;
    }
    snprintf(text, sizeof text, "closed by the server: %u %.*s", status,
             h->payload_bytes > 2 ? (int)h->payload_bytes - 2 : 0, payload + 2);
    conn_fail(c, text);
}

static size_t cut_websocket(Conn *c, uint8_t *data, size_t size) {
    size_t used = 0;
    for (WsHeader h; c->state != CONN_CLOSED && ws_header_read(&h, data + used, size - used);) {
        if (!h.final || h.masked || h.payload_bytes > FRAME_BYTES_MAX) {
            conn_fail(c, "websocket: fragmented, masked or too long a frame");
            break;
        }
        uint64_t frame_bytes = h.header_bytes + h.payload_bytes;
        if (size - used < frame_bytes) break;
        uint8_t *payload = data + used + h.header_bytes;
        const Protocol *protocol = swarm.options.protocol;
        if (h.opcode == protocol->opcode) protocol->on_bytes(c, payload, h.payload_bytes);
        else on_websocket_control(c, &h, payload);
        used += frame_bytes;
    }
    return used;
}

static void take_stream(Conn *c, const uint8_t *data, size_t size) {
    const Protocol *protocol = swarm.options.protocol;
    if (c->stream.size == 0) {
        size_t used = protocol->on_bytes(c, data, size);
        if (c->state != CONN_CLOSED) buffer_append(&c->stream, data + used, size - used);
        return;
    }
    buffer_append(&c->stream, data, size);
    size_t used = protocol->on_bytes(c, c->stream.data, c->stream.size);
    if (c->state == CONN_CLOSED) return;
    memmove(c->stream.data, c->stream.data + used, c->stream.size - used);
    c->stream.size -= used;
    if (c->stream.size == 0) buffer_free(&c->stream);
}

/* Of a stream protocol's frame, what has come is used at once: a server may put a second's messages into one frame. */
static size_t cut_stream(Conn *c, uint8_t *data, size_t size) {
    size_t used = 0;
    while (c->state != CONN_CLOSED && used < size) {
        if (c->frame_left) {
            size_t piece = size - used < c->frame_left ? size - used : c->frame_left;
            take_stream(c, data + used, piece);
            c->frame_left -= (uint32_t)piece;
            used += piece;
            continue;
        }
        WsHeader h;
        if (!ws_header_read(&h, data + used, size - used)) break;
        if (h.masked) {
            conn_fail(c, "websocket: a masked frame");
            break;
        }
        bool control = h.opcode >= WS_CLOSE;
        if (control && size - used < h.header_bytes + h.payload_bytes) break;
        if (control) on_websocket_control(c, &h, data + used + h.header_bytes);
        else if (h.payload_bytes > UINT32_MAX) conn_fail(c, "websocket: too long a frame");
        else c->frame_left = (uint32_t)h.payload_bytes;
        used += h.header_bytes + (control ? h.payload_bytes : 0);
    }
    return used;
}

static size_t cut_tcp(Conn *c, uint8_t *data, size_t size) {
    size_t used = 0;
    while (c->state != CONN_CLOSED && size - used >= 4) {
        uint64_t body_bytes = load_be(data + used, 4);
        if (body_bytes > FRAME_BYTES_MAX) {
            conn_fail(c, "tcp: too long a frame");
            break;
        }
        if (size - used < 4 + body_bytes) break;
        swarm.options.protocol->on_bytes(c, data + used + 4, body_bytes);
        used += 4 + body_bytes;
    }
    return used;
}

static size_t cut(Conn *c, uint8_t *data, size_t size) {
    size_t used = 0;
    if (c->state == CONN_UPGRADING) {
        used = cut_upgrade(c, data, size);
        if (used == 0 || c->state == CONN_CLOSED) return used;
    }
    data += used, size -= used;
    if (swarm.options.tcp) return used + cut_tcp(c, data, size);
    return used + (swarm.options.protocol->stream ? cut_stream(c, data, size) : cut_websocket(c, data, size));
}

static void on_readable(Conn *c) {
    size_t kept = c->partial.size;
    if (kept) memcpy(recv_buffer, c->partial.data, kept);
    ssize_t got = recv(c->fd, recv_buffer + kept, sizeof recv_buffer - 1 - kept, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        if (c->state == CONN_LEAVING) conn_close(c);
        else if (got == 0) conn_fail(c, "closed by the server without a word");
        else fail_errno(c, "recv", errno);
        return;
    }
    size_t size = kept + (size_t)got;
    recv_buffer[size] = 0;
    corked = c;
    size_t used = cut(c, recv_buffer, size);
    uncork(c);
    if (c->state == CONN_CLOSED) return;
    c->partial.size = 0;
    if (used < size) buffer_append(&c->partial, recv_buffer + used, size - used);
    else if (c->partial.data) buffer_free(&c->partial);
}

void conn_on_event(Conn *c, uint32_t events) {
    if (c->state == CONN_CLOSED) return;
    if (c->state == CONN_CONNECTING) {
        on_connected(c);
        return;
    }
    if (c->muted && events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        swarm.counts.slow_ended++;
        conn_close(c);
        return;
    }
    if (events & EPOLLOUT && c->backlog.size) drain_backlog(c);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !c->muted) on_readable(c);
}
