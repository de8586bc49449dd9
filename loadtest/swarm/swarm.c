/* The loop: wait, handle what came, publish what is due. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "swarm.h"

enum { EVENTS_MAX = 256, TIDY_NS = 100 * 1000 * 1000, TIDY_SLICES = 10 };
#define STDIN_EVENT UINT32_MAX

Swarm swarm;
static volatile sig_atomic_t stop_wanted;

uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void on_signal(int number) {
    (void)number;
    stop_wanted = 1;
}

static void *allocate(size_t count, size_t size) {
    void *p = calloc(count, size);
    if (p) return p;
    fprintf(stderr, "swarm: out of memory\n");
    exit(1);
}

static void read_tokens(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) {
        fprintf(stderr, "swarm: %s: %s\n", path, strerror(errno));
        exit(2);
    }
    swarm.tokens = allocate((size_t)swarm.conn_count, sizeof *swarm.tokens);
    char *line = NULL;
    size_t capacity = 0;
    while (swarm.token_count < swarm.conn_count && getline(&line, &capacity, file) > 0) {
        line[strcspn(line, "\r\n")] = 0;
        if (strlen(line) > 1500) {
            fprintf(stderr, "swarm: a token is longer than 1500 bytes\n");
            exit(2);
        }
        if (*line) swarm.tokens[swarm.token_count++] = strdup(line);
    }
    free(line);
    fclose(file);
}

/* In pairs, each connection is the one member of its user's channel, and speaks to that of its neighbour. */
static void set_up_groups(void) {
    const Options *o = &swarm.options;
    bool pairs = o->workload == WORKLOAD_PAIRS;
    swarm.conn_count = o->groups * o->members;
    swarm.conns = allocate((size_t)swarm.conn_count, sizeof *swarm.conns);
    swarm.groups = allocate((size_t)o->groups, sizeof *swarm.groups);
    for (int i = 0; i < swarm.conn_count; i++) {
        uint32_t group = (uint32_t)(i / o->members);
        swarm.conns[i] = (Conn){.fd = -1, .index = (uint32_t)i, .group = group, .target = pairs ? group ^ 1 : group};
    }
    for (int g = 0; g < o->groups; g++) {
        Group *group = &swarm.groups[g];
        char user[32];
        session_user(&swarm.conns[g * o->members], user, sizeof user);
        group->name_bytes = (size_t)(pairs ? snprintf(group->name, sizeof group->name, "user:%s", user)
                                           : snprintf(group->name, sizeof group->name, "group:%s-%d", o->group, g));
    }
}

static void set_up(void) {
    const Options *o = &swarm.options;
    set_up_groups();
    for (size_t i = 0; i < sizeof payload_pattern; i++) payload_pattern[i] = (uint8_t)('a' + i * 7 % 26);
    if (o->token_file) read_tokens(o->token_file);
    swarm.ping_ns = 30000000000u;
    swarm.window_end_ns = UINT64_MAX;
    swarm.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = STDIN_EVENT};
    if (o->wait_go && epoll_ctl(swarm.epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event)) {
        fprintf(stderr, "swarm: --wait needs a pipe or a terminal on stdin\n");
        exit(2);
    }
}

static void on_stdin(void) {
    char line[64];
    ssize_t got = read(STDIN_FILENO, line, sizeof line);
    epoll_ctl(swarm.epoll_fd, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
    if (got > 0) load_on_go();
    else load_stop();
}

/* Deadlines of handshakes, and a tenth of the heartbeats, so that they never leave all at once. */
static void tidy(void) {
    if (swarm.now_ns - swarm.tidied_ns < TIDY_NS) return;
    swarm.tidied_ns = swarm.now_ns;
    if (swarm.phase == CONNECTING) {
        for (int i = 0; i < swarm.started; i++) {
            Conn *c = &swarm.conns[i];
            bool waiting = c->state >= CONN_CONNECTING && c->state < CONN_JOINED;
            if (waiting && swarm.now_ns > c->deadline_ns) conn_fail(c, "handshake timed out");
        }
    }
    if (swarm.phase >= CLOSING) return;
    int end = swarm.tidy_next + swarm.conn_count / TIDY_SLICES + 1;
    if (end > swarm.conn_count) end = swarm.conn_count;
    for (int i = swarm.tidy_next; i < end; i++) session_heartbeat(&swarm.conns[i]);
    swarm.tidy_next = end == swarm.conn_count ? 0 : end;
}

static bool is_caught_up(void) {
    struct epoll_event first; /* level-triggered: it stays ready */
    return epoll_wait(swarm.epoll_fd, &first, 1, 0) == 0;
}

/* Very many connections that are only held: their heartbeats come one by one all the time, and a wake-up for each would
 * cost this side more than the heartbeat. In the closed loop a client that has caught up sleeps until the next send to
 * any of its connections, and the server pays for waking it: 10 us of CPU on a virtual machine, twice what the send
 * itself costs, as often as the client happens to be the quicker. So it sleeps for a while of its own accord, as a
 * network card waits before it interrupts. Stamps of what arrives are late by as much. */
static void gather(void) {
    bool loaded = swarm.options.workload == WORKLOAD_MAX && (swarm.phase == WARMUP || swarm.phase == WINDOW);
    if (swarm.options.gather_s <= 0 || !(swarm.phase == HOLDING || (loaded && is_caught_up()))) return;
    struct timespec wait = {.tv_nsec = (long)(swarm.options.gather_s * 1e9)};
    nanosleep(&wait, NULL);
}

static void turn(void) {
    struct epoll_event events[EVENTS_MAX];
    gather();
    uint64_t wait_ns = load_wait_ns();
    struct timespec timeout = {.tv_sec = (time_t)(wait_ns / 1000000000u), .tv_nsec = (long)(wait_ns % 1000000000u)};
    int count = epoll_pwait2(swarm.epoll_fd, events, EVENTS_MAX, &timeout, NULL);
    for (int i = 0; i < count; i++) {
        /* Per event: latency is taken from it, and a publish that falls due must not wait for the rest. */
        swarm.now_ns = clock_ns();
        if (events[i].data.u32 == STDIN_EVENT) on_stdin();
        else conn_on_event(&swarm.conns[events[i].data.u32], events[i].events);
        if (swarm.next_due_ns <= swarm.now_ns) load_tick();
    }
    swarm.now_ns = clock_ns();
    if (stop_wanted) {
        stop_wanted = 0;
        load_stop();
    }
    load_tick();
    tidy();
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    options_parse(&swarm.options, argc, argv);
    set_up();
    swarm.now_ns = swarm.connect_start_ns = clock_ns();
    while (swarm.phase != DONE) turn();
    return report_print();
}
