/* Messages to everybody: every session of the gateway gets them, without having joined anything.
 *
 * Whoever publishes puts CLOCK_MONOTONIC in nanoseconds into them as a whole number: it is one clock for all processes of
 * the machine. Once every connection here has got one more, a line says when the first and the last of them had it.
 */
#include "swarm.h"

void global_on_message(Conn *c, Span s) {
    uint64_t joined = (uint64_t)swarm.joined;
    uint64_t published_ns = span_uint(&s);
    c->globals++;
    if (swarm.globals++ % joined == 0) swarm.global_first_ns = swarm.now_ns;
    if (!s.bad && swarm.now_ns > published_ns) histogram_add(&swarm.global_latency, swarm.now_ns - published_ns);
    if (swarm.globals % joined) return;
    printf("global %llu %llu %llu\n", (unsigned long long)(swarm.globals / joined),
           (unsigned long long)swarm.global_first_ns, (unsigned long long)swarm.now_ns);
    fflush(stdout);
}

void global_range(unsigned *least, unsigned *most) {
    *least = UINT8_MAX, *most = 0;
    for (int i = 0; i < swarm.conn_count; i++) {
        unsigned globals = swarm.conns[i].globals;
        if (globals < *least) *least = globals;
        if (globals > *most) *most = globals;
    }
}
