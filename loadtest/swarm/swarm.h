/* The load client: drives very many connections of the real protocol from one thread and checks all they receive.
 *
 *   options.c   the command line
 *   conn.c      sockets: paced connecting, handshake, cutting frames, sending
 *   check.c     the check of every delivery
 *   session.c   our protocol: HELLO to FIN_ACK
 *   nats.c, mqtt.c, socketio.c   the protocols of peers
 *   global.c    messages to everybody: whether all connections here have one, and when
 *   load.c      what is published when, and the phases of a run
 *   report.c    the result as JSON
 *   swarm.c     the loop
 *
 * Invariant of the count: each message accepted in a group is, at each member, exactly one of delivered or lost;
 * repeated and reordered deliveries are counted beside. One process is one thread, so all state hangs on `swarm`.
 */
#ifndef SWARM_H
#define SWARM_H

#include <stdio.h>

#include "histogram.h"
#include "msgpack.h"
#include "websocket.h"

enum {
    HANDSHAKES_MAX = 512, /* under way at once, unless told */
    ENDPOINTS_MAX = 64,
    FAILURES_MAX = 64, /* different texts; further ones are counted under "other" */
    FAILURE_BYTES_MAX = 96,
    SOURCE_CONNECTIONS = 20000, /* per loopback source address: below the 28,000 ephemeral ports */
    RECV_BYTES = 256 * 1024,    /* the one receive buffer */
    FRAME_BYTES_MAX = 128 * 1024,
    CORK_BYTES = 256 * 1024,
    PAYLOAD_BYTES_MIN = 32, /* the stamp, written as text */
    PAYLOAD_BYTES_MAX = 60000,
    BACKLOG_BYTES_MAX = 64 * 1024 * 1024,
};

enum workload { WORKLOAD_IDLE, WORKLOAD_FAN, WORKLOAD_MAX, WORKLOAD_ROOMS, WORKLOAD_PAIRS, WORKLOAD_STORM };

/* In the order in which a run goes through them. */
enum phase { CONNECTING, WAITING, HOLDING, WARMUP, WINDOW, DRAINING, CLOSING, DONE };

enum conn_state {
    CONN_UNUSED,
    CONN_CONNECTING,
    CONN_UPGRADING,
    CONN_HELLO,
    CONN_JOINING,
    CONN_JOINED,
    CONN_LEAVING,
    CONN_CLOSED
};

enum frame_type {
    HELLO = 0,
    WELCOME = 1,
    REPLY = 2,
    ERROR = 3,
    PING = 4,
    PONG = 5,
    JOIN = 6,
    PUBLISH = 8,
    MESSAGE = 9,
    ACK = 10,
    EVENT = 13,
    FIN = 14,
    FIN_ACK = 15,
};

typedef struct Conn Conn;
typedef struct Group Group;

/* What differs between the servers. Frames of a stream protocol are pieces of a byte stream, cut where the server
 * pleases; those of the others are messages. */
typedef struct {
    const char *name;
    const char *path;        /* of the upgrade */
    const char *subprotocol; /* or NULL */
    uint8_t opcode;
    bool stream;
    bool positions; /* messages carry offsets: order and loss are known to the message; without, they are counted */
    bool answers;   /* PUBLISH is answered; without, a publisher's own copy of the message stands for the answer */
    bool speaks_first;
    void (*start)(Conn *c);
    /* Returns the bytes used: all of a message, or the whole parts of a stream. May close the connection. */
    size_t (*on_bytes)(Conn *c, const uint8_t *data, size_t size);
    void (*publish)(Conn *c, const Group *group, const uint8_t *payload, size_t size);
    void (*leave)(Conn *c);
    void (*ping)(Conn *c);
} Protocol;

extern const Protocol protocol_holdfast, protocol_nats, protocol_mqtt, protocol_socketio;

typedef struct {
    enum workload workload;
    const Protocol *protocol;
    bool tcp, ack, text, wait_go;
    char hosts[ENDPOINTS_MAX][64];
    int ports[ENDPOINTS_MAX];
    int host_count, port_count;
    int groups, members, publishers, under_way; /* publishers are per group */
    int slow;         /* members of each group, the last ones, that read nothing */
    int first;        /* index of the first connection: names users and picks source addresses */
    int connect_rate; /* a second */
    int payload_bytes;
    double rate; /* messages a second in all */
    int handshakes_max;
    double gather_s; /* idle: how long a turn waits for more while connections are held; max: before it may sleep */
    double warmup_s, seconds, drain_s, handshake_s, ack_s;
    uint64_t messages; /* stop the window after so many; 0: by time */
    const char *group; /* channel name prefix */
    const char *token_file;
} Options;

typedef struct {
    uint8_t *data; /* owned by the connection; none while empty */
    uint32_t size; /* BACKLOG_BYTES_MAX at most */
    uint32_t capacity;
} Buffer;

/* 136 bytes: a million of them are held. */
struct Conn {
    int fd;
    uint8_t state; /* enum conn_state */
    bool writable_wanted;
    bool muted; /* joined, and reads nothing any more */
    bool based; /* last_offset means something */
    uint32_t index; /* in swarm.conns */
    uint32_t group;
    uint32_t target; /* the group that it publishes to: its own, or in pairs the partner's */
    uint32_t in_flight; /* publishes without an answer */
    uint32_t ping_seq;
    uint32_t request_id;
    uint64_t last_offset; /* the highest seen in the group */
    uint64_t seen;        /* bit n: offset last_offset - n has come */
    uint64_t acked, acked_ns;
    uint64_t sent_ns;     /* when anything was last sent: heartbeats fill silence only */
    uint64_t deadline_ns; /* of the handshake */
    uint32_t frame_left;  /* stream protocols: bytes of the current frame that have not come */
    uint8_t globals;      /* messages of global: channels; wraps */
    Buffer partial;       /* the beginning of a frame whose rest has not come */
    Buffer stream;        /* the same of a stream's part, across frames */
    Buffer backlog;       /* what the socket would not take */
};

struct Group {
    char name[64];
    size_t name_bytes;
    uint64_t high; /* highest offset told by a REPLY or a MESSAGE; without positions, how many were published */
};

/* Travels at the head of each payload, raw in `bin`, six bits a character in `str`. */
typedef struct {
    uint64_t intended_ns; /* CLOCK_MONOTONIC: one clock for all processes of the machine */
    uint32_t publisher;
    uint32_t sequence;
    uint64_t check; /* of the fields above */
} Stamp;

typedef struct {
    char text[FAILURE_BYTES_MAX];
    uint64_t count;
} Failure;

typedef struct {
    uint64_t published, replies, refused; /* refused: answered by ERROR */
    uint64_t delivered, lost, repeated, out_of_order, corrupt;
    uint64_t other_messages, events, pings, acks, slow_ended;
    uint64_t window_published, window_delivered; /* of messages whose intended time lies in the window */
} Counts;

typedef struct {
    Options options;
    Conn *conns;
    Group *groups;
    char **tokens;
    int token_count;
    int conn_count, started, handshakes, joined, alive, disconnected, failed; /* failed: never joined */
    enum phase phase;
    bool aborted, drained;
    int without_fin_ack;
    int epoll_fd;
    uint64_t now_ns;
    uint64_t connect_start_ns, joined_ns, load_start_ns, window_start_ns, window_end_ns, drained_ns, close_start_ns;
    uint64_t next_due_ns, next_publish; /* open loop: when the publish of that number is due */
    uint64_t in_flight;                 /* over all connections */
    uint64_t ping_ns;                   /* as told in WELCOME */
    uint64_t tidied_ns, drain_checked_ns;
    int tidy_next; /* where the next slice of the heartbeat sweep begins */
    double cpu_user_start_s, cpu_system_start_s, cpu_user_s, cpu_system_s;
    long sleeps_start, sleeps; /* how often this process gave its core up: as often it had to be woken */
    Counts counts;
    Histogram latency;
    Histogram connecting; /* from the intended time of connecting to joined */
    uint64_t globals, global_first_ns; /* over all connections; the first arrival of the last message */
    Histogram global_latency;
    Failure failures[FAILURES_MAX + 1];
    int failure_count;
} Swarm;

_Static_assert(sizeof(Conn) <= 136, "a million of them are held");

extern Swarm swarm;
extern uint8_t payload_pattern[PAYLOAD_BYTES_MAX];

uint64_t clock_ns(void);

void options_parse(Options *o, int argc, char **argv);

/* Starts as many connections as pace and bounds allow. */
void conn_start_due(void);
void conn_on_event(Conn *c, uint32_t events);
/* Sends a body in a frame of the transport; what the socket does not take now follows later. */
void conn_send(Conn *c, const uint8_t *body, size_t size);
void conn_close(Conn *c);
/* Closes and counts a connection that should have lived; `what` is its text in the result. */
void conn_fail(Conn *c, const char *what);

/* Stops reading and never begins again, as a client does that hangs. */
void conn_mute(Conn *c);

/* The connection is a member; `offset` is where its group stands. */
void session_joined(Conn *c, uint64_t offset);
void session_leave(Conn *c);
void session_heartbeat(Conn *c);
/* The server said no: a failed connection before joining, else an answer that counts as refused. */
void session_refused(Conn *c, const char *text, bool of_publish);
void session_user(const Conn *c, char *user, size_t size);

/* A message with its position, or without one. */
void delivery_positioned(Conn *c, uint64_t offset, const uint8_t *data, size_t size);
void delivery_counted(Conn *c, const uint8_t *data, size_t size);

/* A message of a global: channel, from its data on. */
void global_on_message(Conn *c, Span s);
/* The fewest and the most that a connection has got. */
void global_range(unsigned *least, unsigned *most);

void load_on_joined(void);
/* A connection ended before it had joined. */
void load_on_failed(void);
void load_on_go(void);
void load_on_reply(Conn *c);
/* Publishes what is due and moves to the next phase when its time has come. */
void load_tick(void);
void load_stop(void);
void load_on_closed(void);
/* How long the loop may wait. */
uint64_t load_wait_ns(void);

void stamp_write(uint8_t *payload, Stamp stamp, bool text);

void failure_count(const char *text);
int report_print(void);

#endif
