/* The result: one JSON object on one line of stdout, failures also in words on stderr. */
#include "swarm.h"

void failure_count(const char *text) {
    char plain[FAILURE_BYTES_MAX];
    snprintf(plain, sizeof plain, "%s", text);
    /* Some of it came from the peer: nothing may break out of the JSON string. */
    for (char *p = plain; *p; p++)
        if (*p == '"' || *p == '\\' || *p < ' ' || *p > '~') *p = '?';
    int i = 0;
    while (i < swarm.failure_count && strcmp(swarm.failures[i].text, plain) != 0) i++;
    if (i == swarm.failure_count) {
        if (i == FAILURES_MAX) i = FAILURES_MAX - 1;
        else swarm.failure_count++;
        snprintf(swarm.failures[i].text, FAILURE_BYTES_MAX, "%s",
                 swarm.failure_count == FAILURES_MAX ? "other" : plain);
    }
    swarm.failures[i].count++;
}

static void print_failures(void) {
    printf("\"errors\": {");
    for (int i = 0; i < swarm.failure_count; i++) {
        const Failure *f = &swarm.failures[i];
        printf("%s\"%s\": %llu", i ? ", " : "", f->text, (unsigned long long)f->count);
        fprintf(stderr, "swarm: %s (%llu times)\n", f->text, (unsigned long long)f->count);
    }
    printf("}");
}

static void print_count(const char *name, uint64_t value) { printf("\"%s\": %llu, ", name, (unsigned long long)value); }

static void print_counts(const Counts *n) {
    print_count("published", n->published);
    print_count("replies", n->replies);
    print_count("refused", n->refused);
    print_count("delivered", n->delivered);
    print_count("lost", n->lost);
    print_count("repeated", n->repeated);
    print_count("out_of_order", n->out_of_order);
    print_count("corrupt", n->corrupt);
    print_count("other_messages", n->other_messages);
    print_count("events", n->events);
    print_count("pings_answered", n->pings);
    print_count("acks", n->acks);
    print_count("slow_ended", n->slow_ended);
    print_count("window_published", n->window_published);
    print_count("window_delivered", n->window_delivered);
}

static void print_percentiles(const char *name, const Histogram *h) {
    static const struct {
        const char *name;
        double share;
    } wanted[] = {{"p50", 0.5}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}, {"p999", 0.999}};
    printf("\"%s\": {", name);
    for (unsigned i = 0; i < 5; i++)
        printf("\"%s\": %.1f, ", wanted[i].name, (double)histogram_percentile(h, wanted[i].share) * 1e-3);
    printf("\"max\": %.1f, \"count\": %llu}, ", (double)h->max_ns * 1e-3, (unsigned long long)h->total);
}

/* What a member had not got when the clock stopped. */
static void count_missing_tails(void) {
    for (int i = 0; i < swarm.conn_count; i++) {
        const Conn *c = &swarm.conns[i];
        uint64_t high = swarm.groups[c->group].high;
        if (c->based && !c->muted && high > c->last_offset) swarm.counts.lost += high - c->last_offset;
    }
}

int report_print(void) {
    const Counts *n = &swarm.counts;
    count_missing_tails();
    double seconds = swarm.window_start_ns && swarm.drained_ns > swarm.window_start_ns
                         ? (double)(swarm.drained_ns - swarm.window_start_ns) * 1e-9
                         : 0;
    double connect_s = swarm.joined_ns ? (double)(swarm.joined_ns - swarm.connect_start_ns) * 1e-9 : 0;
    printf("{\"connections\": %d, \"joined\": %d, \"failed\": %d, \"disconnected\": %d, \"without_fin_ack\": %d, ",
           swarm.conn_count, swarm.joined, swarm.failed, swarm.disconnected, swarm.without_fin_ack);
    print_counts(n);
    printf("\"drained\": %s, \"connect_seconds\": %.4f, \"seconds\": %.4f, ", swarm.drained ? "true" : "false",
           connect_s, seconds);
    printf("\"deliveries_per_s\": %.1f, ", seconds > 0 ? (double)n->window_delivered / seconds : 0.0);
    print_percentiles("latency_us", &swarm.latency);
    print_percentiles("connect_us", &swarm.connecting);
    unsigned least, most;
    global_range(&least, &most);
    printf("\"globals\": %llu, \"globals_least\": %u, \"globals_most\": %u, ", (unsigned long long)swarm.globals, least,
           most);
    print_percentiles("global_latency_us", &swarm.global_latency);
    printf("\"cpu_user_s\": %.3f, \"cpu_system_s\": %.3f, \"sleeps\": %ld, ", swarm.cpu_user_s - swarm.cpu_user_start_s,
           swarm.cpu_system_s - swarm.cpu_system_start_s, swarm.sleeps - swarm.sleeps_start);
    print_failures();
    printf("}\n");
    fflush(stdout);
    if (swarm.aborted || swarm.disconnected) return 1;
    bool wrong = n->lost || n->repeated || n->out_of_order || n->corrupt || n->refused || !swarm.drained;
    return wrong ? 3 : 0;
}
