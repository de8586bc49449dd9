/* The floor: a server that makes only the system calls which the job cannot do without.
 *
 * It accepts WebSocket clients, answers HELLO, JOIN and PUBLISH with fixed shapes, and sends each published message to
 * every member of its group. There are no sessions, rights, limits or heartbeats: what it costs is what the kernel
 * costs, and every figure of the real server is given as a ratio to it. Two inexactnesses are accepted: a connection is
 * in one group, the one that it joined last, and who joins in the very wake-up in which a message is published gets
 * that message too, as the batch is common to all members.
 *
 *   --per-delivery   one send() for each message and member, at once
 *   --coalesce       everything that one epoll_wait() brought leaves in one sendmsg() per connection
 *
 * It also errs on request, so that the load client's checker can be tested: --inject drop|repeat|swap does so once, at
 * offset --inject-at, to the second member alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "msgpack.h"
#include "websocket.h"

enum { CONNECTIONS_MAX = 20000, EVENTS_MAX = 1024, RECV_BYTES = 256 * 1024, FRAME_BYTES_MAX = 64 * 1024 };
enum { BACKLOG_BYTES_MAX = 64 * 1024 * 1024, ANSWER_BYTES = 64, INJECTED_MEMBER = 1 };
enum { CHANNEL_BYTES_MAX = 255, GROUP_BUCKETS = 16384 };
enum {
    HELLO = 0,
    WELCOME = 1,
    REPLY = 2,
    PING = 4,
    PONG = 5,
    JOIN = 6,
    PUBLISH = 8,
    MESSAGE = 9,
    FIN = 14,
    FIN_ACK = 15
};
enum inject { INJECT_NONE, INJECT_DROP, INJECT_REPEAT, INJECT_SWAP };

typedef struct {
    uint8_t *data; /* owned; freed when emptied, so that idle connections hold none */
    size_t size;   /* bytes filled */
    size_t capacity;
} Buffer;

typedef struct Connection Connection;
typedef struct Group Group;

/* A channel with its members; lives until the end, as channels are few. */
struct Group {
    Group *next; /* of the same bucket */
    uint8_t name[CHANNEL_BYTES_MAX];
    size_t name_bytes;
    Connection **members; /* owned */
    int count, capacity;
    bool touched;
    uint64_t last_offset;
    Buffer batch; /* messages of this wake-up, the same bytes for every member */
};

struct Connection {
    int fd; /* -1: slot free */
    bool upgraded;
    bool touched; /* is in the list of connections to flush after this wake-up */
    bool writable_wanted;
    Group *group;   /* NULL until it joins */
    int member;     /* its index there */
    Buffer partial; /* a frame of which only the beginning has come */
    Buffer answers; /* of this wake-up, for this connection alone; in coalescing mode only */
    Buffer backlog; /* what the socket would not take */
};

static Connection connections[CONNECTIONS_MAX]; /* by fd */
static Connection *touched[CONNECTIONS_MAX];
static Group *groups[GROUP_BUCKETS];
static Group **touched_groups; /* room for all */
static int group_count, touched_count, touched_group_count, epoll_fd, listen_fd;
static bool coalesce;
static enum inject inject;
static uint64_t inject_at = 100;
static Buffer held_back; /* the message to be swapped with its successor */
static uint8_t recv_buffer[RECV_BYTES];
static volatile sig_atomic_t stopping;

static void die(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void buffer_append(Buffer *b, const void *data, size_t size) {
    if (size == 0) return;
    if (b->size + size > b->capacity) {
        size_t capacity = b->capacity ? b->capacity : 512;
        while (capacity < b->size + size) capacity *= 2;
        if (!(b->data = realloc(b->data, capacity))) die("out of memory");
        b->capacity = capacity;
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void buffer_consume(Buffer *b, size_t bytes) {
    memmove(b->data, b->data + bytes, b->size - bytes);
    b->size -= bytes;
}

static void buffer_free(Buffer *b) {
    free(b->data);
    *b = (Buffer){0};
}

static void want_writable(Connection *c, bool wanted) {
    if (c->writable_wanted == wanted) return;
    c->writable_wanted = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.fd = c->fd};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event)) die("epoll_ctl");
}

static void group_leave(Connection *c) {
    Group *g = c->group;
    if (!g) return;
    g->members[c->member] = g->members[--g->count];
    g->members[c->member]->member = c->member;
    c->group = NULL;
}

static void group_join(Connection *c, Group *g) {
    if (c->group == g) return;
    group_leave(c);
    if (g->count == g->capacity) {
        g->capacity = g->capacity ? 2 * g->capacity : 4;
        if (!(g->members = realloc(g->members, (size_t)g->capacity * sizeof *g->members))) die("out of memory");
    }
    c->group = g;
    c->member = g->count;
    g->members[g->count++] = c;
}

static Group *group_named(const uint8_t *name, size_t size) {
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < size; i++) hash = (hash ^ name[i]) * 16777619u;
    Group **place = &groups[hash % GROUP_BUCKETS];
    for (; *place; place = &(*place)->next)
        if ((*place)->name_bytes == size && memcmp((*place)->name, name, size) == 0) return *place;
    *place = calloc(1, sizeof **place);
    touched_groups = realloc(touched_groups, (size_t)++group_count * sizeof *touched_groups);
    if (!*place || !touched_groups) die("out of memory");
    memcpy((*place)->name, name, size);
    (*place)->name_bytes = size;
    return *place;
}

static void close_connection(Connection *c) {
    group_leave(c);
    for (int i = 0; c->touched && i < touched_count; i++) {
        if (touched[i] != c) continue;
        touched[i] = touched[--touched_count];
        break;
    }
    close(c->fd);
    buffer_free(&c->partial);
    buffer_free(&c->answers);
    buffer_free(&c->backlog);
    *c = (Connection){.fd = -1};
}

/* Sends two pieces in one call; what the socket does not take waits in the backlog. False: the peer is gone. The caller
 * must not use `c` after a false, but closing is left to the read side, so that the member list stays put meanwhile. */
static bool send_pieces(Connection *c, const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
    size_t sent = 0;
    if (c->backlog.size == 0) {
        ssize_t got;
        if (b_bytes == 0) {
            got = send(c->fd, a, a_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else {
            struct iovec pieces[2] = {{(void *)a, a_bytes}, {(void *)b, b_bytes}};
            struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
            got = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
        if (got < 0 && errno != EAGAIN) return false;
        sent = got < 0 ? 0 : (size_t)got;
        if (sent == a_bytes + b_bytes) return true;
    }
    size_t from_a = sent < a_bytes ? sent : a_bytes;
    buffer_append(&c->backlog, (const uint8_t *)a + from_a, a_bytes - from_a);
    if (b_bytes) buffer_append(&c->backlog, (const uint8_t *)b + (sent - from_a), b_bytes - (sent - from_a));
    if (c->backlog.size > BACKLOG_BYTES_MAX) {
        shutdown(c->fd, SHUT_RDWR);
        return false;
    }
    want_writable(c, true);
    return true;
}

static void drain_backlog(Connection *c) {
    ssize_t got = send(c->fd, c->backlog.data, c->backlog.size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (got <= 0) return;
    buffer_consume(&c->backlog, (size_t)got);
    if (c->backlog.size) return;
    buffer_free(&c->backlog);
    want_writable(c, false);
}

/* For one connection alone: at once, or with the rest of this wake-up. */
static void send_own(Connection *c, const void *data, size_t size) {
    if (!coalesce) {
        send_pieces(c, data, size, NULL, 0);
        return;
    }
    buffer_append(&c->answers, data, size);
    if (c->touched) return;
    c->touched = true;
    touched[touched_count++] = c;
}

static void send_body(Connection *c, const uint8_t *body, size_t size) {
    uint8_t frame[256 + WS_HEADER_BYTES_MAX];
    uint8_t *p = ws_header_write(frame, WS_BINARY, size, NULL);
    memcpy(p, body, size);
    send_own(c, frame, (size_t)(p + size - frame));
}

/* ---- fan-out ---- */

static void deliver_injected(Connection *c, uint64_t offset, const uint8_t *frame, size_t size) {
    if (inject == INJECT_DROP && offset == inject_at) return;
    if (inject == INJECT_SWAP && offset == inject_at) {
        buffer_append(&held_back, frame, size);
        return;
    }
    send_own(c, frame, size);
    if (inject == INJECT_REPEAT && offset == inject_at) send_own(c, frame, size);
    if (held_back.size) send_own(c, held_back.data, held_back.size);
    buffer_free(&held_back);
}

static void deliver(Group *g, const uint8_t *frame, size_t size) {
    if (coalesce) {
        buffer_append(&g->batch, frame, size);
        if (!g->touched) touched_groups[touched_group_count++] = g;
        g->touched = true;
    } else {
        for (int i = 0; i < g->count; i++)
            if (!inject || i != INJECTED_MEMBER) send_pieces(g->members[i], frame, size, NULL, 0);
    }
    if (inject && g->count > INJECTED_MEMBER) deliver_injected(g->members[INJECTED_MEMBER], g->last_offset, frame, size);
}

static void flush_group(Group *g) {
    for (int i = 0; i < g->count; i++) {
        Connection *c = g->members[i];
        if (inject && i == INJECTED_MEMBER) continue;
        if (c->answers.size) send_pieces(c, c->answers.data, c->answers.size, g->batch.data, g->batch.size);
        else send_pieces(c, g->batch.data, g->batch.size, NULL, 0);
        c->answers.size = 0;
    }
    g->batch.size = 0;
    g->touched = false;
}

/* The coalescing mode's one system call per connection, with its own answers in front of the common batch. */
static void flush_wakeup(void) {
    for (int i = 0; i < touched_group_count; i++) flush_group(touched_groups[i]);
    touched_group_count = 0;
    for (int i = 0; i < touched_count; i++) {
        Connection *c = touched[i];
        if (c->answers.size) send_pieces(c, c->answers.data, c->answers.size, NULL, 0);
        buffer_free(&c->answers);
        c->touched = false;
    }
    touched_count = 0;
}

/* ---- frames ---- */

static uint64_t wall_clock_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void answer_position(Connection *c, uint64_t id, const Group *g) {
    uint8_t body[ANSWER_BYTES], *p = pack_array(body, 3);
    p = pack_uint(pack_uint(p, REPLY), id);
    p = pack_uint(pack_text(pack_map(p, 2), "epoch"), 1);
    p = pack_uint(pack_text(p, "offset"), g->last_offset);
    send_body(c, body, (size_t)(p - body));
}

static void on_hello(Connection *c, uint64_t id) {
    char session[32];
    snprintf(session, sizeof session, "floor-%d", c->fd);
    uint8_t body[ANSWER_BYTES], *p = pack_array(body, 3);
    p = pack_uint(pack_uint(p, WELCOME), id);
    p = pack_text(pack_text(pack_map(p, 2), "session"), session);
    p = pack_uint(pack_text(p, "ping"), 30);
    send_body(c, body, (size_t)(p - body));
}

/* The group that a frame names; NULL when it names none. */
static Group *group_read(Span *s) {
    size_t size;
    const uint8_t *name = span_bytes(s, &size);
    return name && size <= CHANNEL_BYTES_MAX ? group_named(name, size) : NULL;
}

static void on_join(Connection *c, uint64_t id, Span rest) {
    Group *g = group_read(&rest);
    if (!g) return;
    group_join(c, g);
    answer_position(c, id, g);
}

/* `rest` stands behind the request id: channel, data, and options that the floor does not look at. */
static void on_publish(Connection *c, uint64_t id, Span rest) {
    static uint8_t frame[FRAME_BYTES_MAX + 256];
    const uint8_t *copied = rest.at;
    Group *g = group_read(&rest);
    const uint8_t *data = rest.at;
    span_skip(&rest);
    if (rest.bad || !g) return;
    g->last_offset++;
    uint8_t *body = frame + WS_HEADER_BYTES_MAX, *p = pack_uint(pack_array(body, 5), MESSAGE);
    memcpy(p, copied, (size_t)(data - copied));
    p = pack_uint(p + (data - copied), g->last_offset);
    memcpy(p, data, (size_t)(rest.at - data));
    p = pack_map(p + (rest.at - data), 3);
    p = pack_text(pack_text(p, "from"), "swarm-0");
    p = pack_uint(pack_text(p, "time"), wall_clock_ms());
    p = pack_uint(pack_text(p, "epoch"), 1);
    /* The header's size depends on the body's: it is written so that it ends where the body begins. */
    uint8_t header[WS_HEADER_BYTES_MAX];
    size_t body_bytes = (size_t)(p - body),
           header_bytes = (size_t)(ws_header_write(header, WS_BINARY, body_bytes, NULL) - header);
    memcpy(body - header_bytes, header, header_bytes);
    answer_position(c, id, g);
    deliver(g, body - header_bytes, header_bytes + body_bytes);
}

static void on_frame(Connection *c, const uint8_t *payload, size_t size) {
    Span s = {payload, payload + size, false};
    unsigned count = span_array(&s);
    uint64_t type = span_uint(&s), id = count > 1 ? span_uint(&s) : 0;
    if (s.bad) return;
    if (type == HELLO) on_hello(c, id);
    else if (type == JOIN) on_join(c, id, s);
    else if (type == PUBLISH) on_publish(c, id, s);
    else if (type == FIN) send_body(c, (const uint8_t[]){0x91, FIN_ACK}, 2);
    else if (type == PING) {
        uint8_t body[ANSWER_BYTES], *p = pack_array(body, 3);
        p = pack_uint(pack_uint(pack_uint(p, PONG), id), span_uint(&s));
        send_body(c, body, (size_t)(p - body));
    }
}

/* Cuts and acts on every whole frame; returns the bytes used, or -1 when the connection must end. */
static ssize_t cut_frames(Connection *c, uint8_t *data, size_t size) {
    size_t used = 0;
    for (WsHeader h; ws_header_read(&h, data + used, size - used);) {
        if (h.payload_bytes > FRAME_BYTES_MAX || !h.masked || !h.final || h.opcode == WS_CLOSE) return -1;
        if (size - used < h.header_bytes + h.payload_bytes) break;
        uint8_t *payload = data + used + h.header_bytes;
        ws_mask(payload, h.payload_bytes, h.mask);
        if (h.opcode == WS_BINARY) on_frame(c, payload, h.payload_bytes);
        used += h.header_bytes + h.payload_bytes;
    }
    return (ssize_t)used;
}

static ssize_t upgrade(Connection *c, uint8_t *data, size_t size) {
    static const char name[] = "\r\nsec-websocket-key:";
    char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return size > 8192 ? -1 : 0;
    *end = 0;
    char *key = strcasestr((char *)data, name);
    if (strncmp((char *)data, "GET /ws ", 8) != 0 || !key) return -1;
    key += sizeof name - 1;
    key += strspn(key, " ");
    if (strcspn(key, " \r") < WS_KEY_BYTES) return -1;
    char accept[WS_ACCEPT_BYTES], answer[256];
    ws_accept(key, accept);
    int length = snprintf(answer, sizeof answer,
                          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Accept: %.*s\r\n\r\n",
                          WS_ACCEPT_BYTES, accept);
    send_own(c, answer, (size_t)length);
    c->upgraded = true;
    return end + 4 - (char *)data;
}

static ssize_t use_bytes(Connection *c, uint8_t *data, size_t size) {
    if (c->upgraded) return cut_frames(c, data, size);
    ssize_t used = upgrade(c, data, size);
    if (used <= 0 || (size_t)used == size) return used;
    ssize_t more = cut_frames(c, data + used, size - (size_t)used);
    return more < 0 ? more : used + more;
}

static void on_readable(Connection *c) {
    size_t kept = c->partial.size;
    if (kept) memcpy(recv_buffer, c->partial.data, kept);
    ssize_t got = recv(c->fd, recv_buffer + kept, sizeof recv_buffer - kept, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    ssize_t used = got <= 0 ? -1 : use_bytes(c, recv_buffer, kept + (size_t)got);
    if (used < 0) {
        close_connection(c);
        return;
    }
    buffer_free(&c->partial);
    if ((size_t)used < kept + (size_t)got)
        buffer_append(&c->partial, recv_buffer + used, kept + (size_t)got - (size_t)used);
}

/* ---- the loop ---- */

static void accept_all(void) {
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= CONNECTIONS_MAX) {
            close(fd);
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        connections[fd] = (Connection){.fd = fd};
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    }
}

static void run(void) {
    struct epoll_event events[EVENTS_MAX];
    while (!stopping) {
        int count = epoll_wait(epoll_fd, events, EVENTS_MAX, 1000);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listen_fd) {
                accept_all();
                continue;
            }
            Connection *c = &connections[fd];
            if (c->fd < 0) continue;
            if (events[i].events & EPOLLOUT) drain_backlog(c);
            if (events[i].events & ~(uint32_t)EPOLLOUT) on_readable(c);
        }
        if (coalesce) flush_wakeup();
    }
}

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

static void listen_on(int port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listen_fd < 0) die("socket");
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listen_fd, (struct sockaddr *)&address, size)) die("bind");
    if (listen(listen_fd, 4096)) die("listen");
    getsockname(listen_fd, (struct sockaddr *)&address, &size);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listen_fd};
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &event)) die("epoll");
    printf("ready %d\n", ntohs(address.sin_port));
    fflush(stdout);
}

static enum inject inject_named(const char *name) {
    if (!strcmp(name, "drop")) return INJECT_DROP;
    if (!strcmp(name, "repeat")) return INJECT_REPEAT;
    if (!strcmp(name, "swap")) return INJECT_SWAP;
    fprintf(stderr, "floor: --inject takes drop, repeat or swap, not %s\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"per-delivery", no_argument, 0, 'd'},    {"coalesce", no_argument, 0, 'c'},
        {"port", required_argument, 0, 'p'},      {"inject", required_argument, 0, 'i'},
        {"inject-at", required_argument, 0, 'a'}, {0, 0, 0, 0}};
    int port = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'd') coalesce = false;
        else if (option == 'c') coalesce = true;
        else if (option == 'p') port = atoi(optarg);
        else if (option == 'i') inject = inject_named(optarg);
        else if (option == 'a') inject_at = strtoull(optarg, NULL, 10);
        else {
            fprintf(stderr, "usage: floor [--per-delivery | --coalesce] [--port N, 0: any] "
                            "[--inject drop|repeat|swap] [--inject-at OFFSET]\n");
            return 2;
        }
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    listen_on(port);
    run();
    return 0;
}
