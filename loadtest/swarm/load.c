/* What is published when, and the phases of a run:
 *
 *   CONNECTING -> (WAITING ->) HOLDING                    -> DRAINING -> CLOSING -> DONE     idle
 *   CONNECTING -> (WAITING ->) WARMUP  -> WINDOW          -> DRAINING -> CLOSING -> DONE     the others
 *
 * The clock of a window stops only when every message answered has come to every member: work that waits in a queue is
 * not done. In open loop a message belongs to the time at which it should have been sent, and its latency counts from
 * there, so that a slow server cannot slow its own test down.
 */
#include <sys/resource.h>

#include "swarm.h"

enum { MILLISECOND_NS = 1000000 };
#define SECOND_NS 1000000000.0
#define CLOSE_DEADLINE_NS 5000000000u

static void cpu_read(double *user_s, double *system_s, long *sleeps) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    *user_s = (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec * 1e-6;
    *system_s = (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec * 1e-6;
    *sleeps = usage.ru_nvcsw;
}

static void say(const char *line) {
    puts(line);
    fflush(stdout);
}

/* ---- publishing ---- */

/* An answer, or the publisher's own copy where there is none, takes it off the count again. */
static bool is_awaited(const Conn *c) { return swarm.options.protocol->answers || c->target == c->group; }

static void publish(Conn *c, uint64_t intended_ns) {
    static uint8_t payload[PAYLOAD_BYTES_MAX];
    const Options *o = &swarm.options;
    Group *group = &swarm.groups[c->target];
    Stamp stamp = {.intended_ns = intended_ns, .publisher = c->index, .sequence = (uint32_t)c->request_id};
    memcpy(payload, payload_pattern, (size_t)o->payload_bytes);
    stamp_write(payload, stamp, o->text);
    if (is_awaited(c)) {
        c->in_flight++;
        swarm.in_flight++;
    }
    if (!o->protocol->positions) group->high++;
    swarm.counts.published++;
    if (intended_ns >= swarm.window_start_ns) swarm.counts.window_published++;
    o->protocol->publish(c, group, payload, (size_t)o->payload_bytes);
    c->request_id++;
}

static bool enough_messages(void) {
    return swarm.options.messages && swarm.counts.window_published >= swarm.options.messages;
}

static bool may_publish(uint64_t at_ns) {
    return (swarm.phase == WARMUP || swarm.phase == WINDOW) && at_ns < swarm.window_end_ns && !enough_messages();
}

/* Message k goes to group k mod G; in each group its publishers take turns. A publisher that is gone is passed over. */
static void publish_due(void) {
    const Options *o = &swarm.options;
    while (swarm.next_due_ns <= swarm.now_ns && may_publish(swarm.next_due_ns)) {
        uint64_t k = swarm.next_publish++;
        uint64_t group = k % (uint64_t)o->groups, publisher = k / (uint64_t)o->groups % (uint64_t)o->publishers;
        Conn *c = &swarm.conns[group * (uint64_t)o->members + publisher];
        if (c->state == CONN_JOINED) publish(c, swarm.next_due_ns);
        swarm.next_due_ns = swarm.load_start_ns + (uint64_t)((double)(k + 1) * SECOND_NS / o->rate);
    }
}

static void prime_closed_loop(void) {
    const Options *o = &swarm.options;
    for (int i = 0; i < o->publishers; i++)
        for (int k = 0; k < o->under_way && may_publish(swarm.now_ns); k++) publish(&swarm.conns[i], swarm.now_ns);
}

void load_on_reply(Conn *c) {
    c->in_flight--;
    swarm.in_flight--;
    if (swarm.options.workload == WORKLOAD_MAX && may_publish(swarm.now_ns)) publish(c, swarm.now_ns);
}

/* ---- phases ---- */

static void begin_window(void) {
    bool idle = swarm.options.workload == WORKLOAD_IDLE || swarm.options.workload == WORKLOAD_STORM;
    swarm.phase = idle ? HOLDING : WINDOW;
    /* A storm is over by now: its client's CPU counts from the start of the process. */
    if (swarm.options.workload != WORKLOAD_STORM)
        cpu_read(&swarm.cpu_user_start_s, &swarm.cpu_system_start_s, &swarm.sleeps_start);
    say("start");
}

static void begin(void) {
    const Options *o = &swarm.options;
    bool idle = o->workload == WORKLOAD_IDLE || o->workload == WORKLOAD_STORM;
    swarm.load_start_ns = swarm.next_due_ns = swarm.now_ns;
    swarm.window_start_ns = swarm.now_ns + (idle ? 0 : (uint64_t)(o->warmup_s * SECOND_NS));
    bool by_time = o->seconds >= 0 && !o->messages;
    swarm.window_end_ns = by_time ? swarm.window_start_ns + (uint64_t)(o->seconds * SECOND_NS) : UINT64_MAX;
    swarm.phase = WARMUP;
    if (idle || o->warmup_s <= 0) begin_window();
    if (o->workload == WORKLOAD_MAX) prime_closed_loop();
}

void load_on_joined(void) {
    if (swarm.joined + swarm.failed < swarm.conn_count) return;
    swarm.joined_ns = swarm.now_ns;
    printf("joined %d\n", swarm.joined);
    fflush(stdout);
    swarm.phase = WAITING;
    if (!swarm.options.wait_go) begin();
}

void load_on_failed(void) {
    /* A run with fewer members than asked for would measure something else. */
    if (swarm.options.workload != WORKLOAD_STORM) {
        swarm.aborted = true;
        return;
    }
    swarm.failed++;
    if (swarm.phase == CONNECTING) load_on_joined();
}

void load_on_go(void) {
    if (swarm.phase == WAITING) begin();
}

static void begin_closing(void) {
    swarm.phase = CLOSING;
    swarm.close_start_ns = swarm.now_ns;
    for (int i = 0; i < swarm.started; i++) session_leave(&swarm.conns[i]);
    load_on_closed();
}

static bool all_caught_up(void) {
    if (swarm.in_flight) return false;
    for (int i = 0; i < swarm.conn_count; i++) {
        const Conn *c = &swarm.conns[i];
        if (c->state == CONN_JOINED && !c->muted && c->last_offset < swarm.groups[c->group].high) return false;
    }
    return true;
}

static void drain_tick(void) {
    if (swarm.now_ns - swarm.drain_checked_ns < MILLISECOND_NS) return;
    swarm.drain_checked_ns = swarm.now_ns;
    swarm.drained = all_caught_up();
    uint64_t deadline_ns = swarm.close_start_ns + (uint64_t)(swarm.options.drain_s * SECOND_NS);
    if (!swarm.drained && swarm.now_ns < deadline_ns) return;
    swarm.drained_ns = swarm.now_ns;
    cpu_read(&swarm.cpu_user_s, &swarm.cpu_system_s, &swarm.sleeps);
    say("drained");
    begin_closing();
}

static void begin_draining(void) {
    swarm.phase = DRAINING;
    swarm.close_start_ns = swarm.now_ns;
    if (swarm.window_end_ns > swarm.now_ns) swarm.window_end_ns = swarm.now_ns + 1;
    drain_tick();
}

void load_stop(void) {
    if (swarm.phase == CONNECTING || swarm.phase == WAITING) {
        failure_count("stopped before the load began");
        swarm.aborted = true;
    } else if (swarm.phase < DRAINING) {
        begin_draining();
    }
}

void load_on_closed(void) {
    if (swarm.phase == CLOSING && swarm.alive == 0) swarm.phase = DONE;
}

static void close_tick(void) {
    if (swarm.now_ns - swarm.close_start_ns < CLOSE_DEADLINE_NS) return;
    swarm.without_fin_ack = swarm.alive;
    swarm.phase = DONE;
}

void load_tick(void) {
    if (swarm.aborted && swarm.phase < CLOSING) {
        swarm.drained_ns = swarm.now_ns;
        begin_closing();
    }
    if (swarm.phase == CONNECTING) conn_start_due();
    if (swarm.phase == WARMUP && swarm.now_ns >= swarm.window_start_ns) begin_window();
    if ((swarm.phase == WARMUP || swarm.phase == WINDOW) && swarm.options.workload != WORKLOAD_MAX) publish_due();
    if (swarm.phase == WINDOW && (swarm.now_ns >= swarm.window_end_ns || enough_messages())) begin_draining();
    if (swarm.phase == HOLDING && swarm.now_ns >= swarm.window_end_ns) begin_draining();
    if (swarm.phase == DRAINING) drain_tick();
    if (swarm.phase == CLOSING) close_tick();
}

uint64_t load_wait_ns(void) {
    uint64_t wait_ns = 100 * MILLISECOND_NS;
    if (swarm.phase == CONNECTING && swarm.started < swarm.conn_count) wait_ns = MILLISECOND_NS;
    if (swarm.phase == DRAINING) wait_ns = MILLISECOND_NS;
    if (swarm.phase != WARMUP && swarm.phase != WINDOW) return wait_ns;
    uint64_t next_ns = swarm.phase == WARMUP ? swarm.window_start_ns : swarm.window_end_ns;
    if (swarm.options.workload != WORKLOAD_MAX && swarm.next_due_ns < next_ns) next_ns = swarm.next_due_ns;
    if (next_ns <= swarm.now_ns) return 0;
    return next_ns - swarm.now_ns < wait_ns ? next_ns - swarm.now_ns : wait_ns;
}
