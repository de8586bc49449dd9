#include <getopt.h>
#include <stdlib.h>

#include "swarm.h"

static const char usage[] =
    "usage: swarm idle|fan|max|rooms|pairs|storm [options]\n"
    "  idle   connect, join, hold until SIGTERM or --seconds\n"
    "  fan    --members of one group; publishers send at --rate in all, at their intended times (open loop)\n"
    "  max    as fan, but each publisher keeps --under-way messages unanswered (closed loop)\n"
    "  rooms  --groups of --members each; --rate in all\n"
    "  pairs  --groups conversations of two users, who publish to each other's user channel; --rate in all\n"
    "  storm  --members connect at --connect-rate, however slow the server is; failures are counted, and it ends\n"
    "  --protocol P            holdfast, nats, mqtt, or socketio, which needs --text (holdfast)\n"
    "  --slow N                members of each group, the last ones, that read nothing once joined (0)\n"
    "  --host H, --port P      may repeat; connection i goes to endpoint i modulo their number (127.0.0.1, 7401)\n"
    "  --tcp                   length-prefixed bodies instead of WebSocket\n"
    "  --members N             members of each group (100)\n"
    "  --groups N              (1)\n"
    "  --publishers N          of each group (1); the first members publish\n"
    "  --under-way N           max only (8)\n"
    "  --rate R                messages a second in all (10)\n"
    "  --payload BYTES         32 to 60000 (100)\n"
    "  --text                  payload as str instead of bin\n"
    "  --warmup S, --seconds S, --drain S   (1, 10, 10); idle holds until SIGTERM unless --seconds is given\n"
    "  --messages N            end the window after N messages instead of after --seconds\n"
    "  --connect-rate N        connections a second (5000)\n"
    "  --handshake-timeout S   from connect to joined (10)\n"
    "  --handshakes N          under way at once (512)\n"
    "  --gather MS             idle: wait so long for more before each turn while the connections are held (0)\n"
    "                          max: wait so long before it sleeps until the next message\n"
    "  --first N               index of the first connection (0): user swarm-<i> and the loopback source address\n"
    "  --token-file F          a token a line instead of user names\n"
    "  --group PREFIX          channels are group:<prefix>-<n> (swarm)\n"
    "  --ack                   acknowledge every --ack-interval S (5)\n"
    "  --wait                  after joining wait for a line on stdin\n"
    "prints `joined N`, `start`, `drained`, then one JSON object\n"
    "exit: 0 all well, 1 connections failed, 2 usage, 3 messages lost, repeated, reordered, corrupt or not drained\n";

static const struct option long_options[] = {{"host", 1, 0, 'h'},         {"port", 1, 0, 'p'},
                                             {"tcp", 0, 0, 't'},          {"members", 1, 0, 'm'},
                                             {"groups", 1, 0, 'g'},       {"publishers", 1, 0, 'P'},
                                             {"under-way", 1, 0, 'k'},    {"rate", 1, 0, 'r'},
                                             {"payload", 1, 0, 'b'},      {"text", 0, 0, 'x'},
                                             {"warmup", 1, 0, 'w'},       {"seconds", 1, 0, 's'},
                                             {"drain", 1, 0, 'd'},        {"messages", 1, 0, 'n'},
                                             {"connect-rate", 1, 0, 'c'}, {"handshake-timeout", 1, 0, 'H'},
                                             {"handshakes", 1, 0, 'N'},   {"gather", 1, 0, 'J'},
                                             {"first", 1, 0, 'f'},        {"token-file", 1, 0, 'T'},
                                             {"group", 1, 0, 'G'},        {"ack", 0, 0, 'a'},
                                             {"ack-interval", 1, 0, 'A'}, {"wait", 0, 0, 'W'},
                                             {"protocol", 1, 0, 'O'},     {"slow", 1, 0, 'S'},
                                             {"help", 0, 0, '?'},         {0, 0, 0, 0}};

static void refuse(const char *why) {
    fprintf(stderr, "swarm: %s\n%s", why, usage);
    exit(2);
}

static const Protocol *protocol_named(const char *name) {
    static const Protocol *const known[] = {&protocol_holdfast, &protocol_nats, &protocol_mqtt, &protocol_socketio};
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i]->name, name) == 0) return known[i];
    refuse("--protocol must be holdfast, nats, mqtt or socketio");
    return NULL;
}

static void take_network(Options *o, int option) {
    if (option == 'h' && o->host_count < ENDPOINTS_MAX) snprintf(o->hosts[o->host_count++], 64, "%s", optarg);
    else if (option == 'p' && o->port_count < ENDPOINTS_MAX) o->ports[o->port_count++] = atoi(optarg);
    else if (option == 't') o->tcp = true;
    else if (option == 'c') o->connect_rate = atoi(optarg);
    else if (option == 'H') o->handshake_s = atof(optarg);
    else if (option == 'N') o->handshakes_max = atoi(optarg);
    else if (option == 'J') o->gather_s = atof(optarg) * 1e-3;
    else if (option == 'f') o->first = atoi(optarg);
    else if (option == 'T') o->token_file = optarg;
    else if (option == 'O') o->protocol = protocol_named(optarg);
    else refuse("unknown option, or too many endpoints");
}

static void take(Options *o, int option) {
    switch (option) {
    case 'm': o->members = atoi(optarg); break;
    case 'g': o->groups = atoi(optarg); break;
    case 'P': o->publishers = atoi(optarg); break;
    case 'k': o->under_way = atoi(optarg); break;
    case 'r': o->rate = atof(optarg); break;
    case 'b': o->payload_bytes = atoi(optarg); break;
    case 'x': o->text = true; break;
    case 'w': o->warmup_s = atof(optarg); break;
    case 's': o->seconds = atof(optarg); break;
    case 'd': o->drain_s = atof(optarg); break;
    case 'n': o->messages = strtoull(optarg, NULL, 10); break;
    case 'G': o->group = optarg; break;
    case 'a': o->ack = true; break;
    case 'A': o->ack_s = atof(optarg); break;
    case 'S': o->slow = atoi(optarg); break;
    case 'W': o->wait_go = true; break;
    default: take_network(o, option);
    }
}

static void check(Options *o) {
    if (o->members < 1 || o->groups < 1) refuse("--members and --groups must be at least 1");
    if (o->groups > 1 && (o->workload == WORKLOAD_FAN || o->workload == WORKLOAD_MAX || o->workload == WORKLOAD_STORM))
        refuse("--groups is for rooms, pairs and idle");
    if (o->slow < 0 || o->publishers < 1 || o->publishers + o->slow > o->members)
        refuse("--publishers must be at least 1, and with --slow at most --members");
    if (o->protocol == &protocol_socketio && !o->text) refuse("--protocol socketio needs --text");
    if (o->protocol != &protocol_holdfast && o->tcp) refuse("--tcp is for our own protocol");
    if (o->payload_bytes < PAYLOAD_BYTES_MIN || o->payload_bytes > PAYLOAD_BYTES_MAX)
        refuse("--payload must be 32 to 60000");
    if (o->under_way < 1 || o->rate <= 0 || o->connect_rate < 1)
        refuse("--under-way, --rate and --connect-rate must be positive");
    if (strlen(o->group) > 40) refuse("--group must be at most 40 bytes");
    if (o->handshakes_max < 1 || o->gather_s < 0 || o->gather_s >= 1) refuse("--handshakes 1 or more, --gather 0 to 999");
    if (o->ack_s <= 0 || o->handshake_s <= 0) refuse("intervals must be positive");
}

void options_parse(Options *o, int argc, char **argv) {
    static const char *const workloads[] = {"idle", "fan", "max", "rooms", "pairs", "storm"};
    static const int workload_count = sizeof workloads / sizeof *workloads;
    *o = (Options){.protocol = &protocol_holdfast,
                   .groups = 1,
                   .members = 100,
                   .publishers = 1,
                   .under_way = 8,
                   .connect_rate = 5000,
                   .payload_bytes = 100,
                   .rate = 10,
                   .warmup_s = 1,
                   .seconds = -1,
                   .drain_s = 10,
                   .handshake_s = 10,
                   .handshakes_max = HANDSHAKES_MAX,
                   .ack_s = 5,
                   .group = "swarm"};
    if (argc < 2) refuse("no workload");
    int workload = 0;
    while (workload < workload_count && strcmp(argv[1], workloads[workload]) != 0) workload++;
    if (workload == workload_count) refuse("the workload must be idle, fan, max, rooms, pairs or storm");
    o->workload = (enum workload)workload;
    optind = 2;
    for (int option; (option = getopt_long(argc, argv, "", long_options, NULL)) != -1;) take(o, option);
    if (optind < argc) refuse("too many words");
    if (o->host_count == 0) snprintf(o->hosts[o->host_count++], 64, "127.0.0.1");
    if (o->port_count == 0) o->ports[o->port_count++] = o->tcp ? 7400 : 7401;
    if (o->seconds < 0 && o->workload != WORKLOAD_IDLE) o->seconds = o->workload == WORKLOAD_STORM ? 0 : 10;
    if (o->workload == WORKLOAD_PAIRS) o->groups *= 2, o->members = 1;
    check(o);
}
