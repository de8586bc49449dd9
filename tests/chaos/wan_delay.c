// A wide area in one program: reads IP packets from a TUN device and writes each to it again after the delay that stands
// between its region and that of its destination. Packets of one way keep their order.
//
//     wan_delay DEVICE SHARED FIRST_NETWORK REGIONS
//
// Regions are /24 networks side by side: that of number n begins at FIRST_NETWORK + 256 n. What is shared (a file,
// mapped) says the delays, which may change at any time, and counts what was carried. Says "ready" once it reads.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { REGIONS_MAX = 4, KINDS = 4, PACKET_BYTES = 65536, HELD_MAX = 1 << 17, READ_AT_ONCE = 64 };
enum { ETCD, REDIS, BUS, OTHER };  // what a packet belongs to, by its TCP port at either end

typedef struct {
    uint64_t packets, bytes;  // as they are on the wire, with the headers of IP and TCP
} Count;

typedef struct {
    uint64_t delay_us[REGIONS_MAX][REGIONS_MAX];  // one way, from and to; set by the test
    Count count[REGIONS_MAX][REGIONS_MAX][KINDS];
    uint64_t strays;    // packets that are of no two regions: dropped
    uint64_t overruns;  // packets beyond HELD_MAX: dropped
    uint64_t late_us;   // the most that a packet was late
} Shared;

typedef struct Packet {
    struct Packet *next;
    uint64_t due_us;
    size_t size;
    uint8_t bytes[];
} Packet;

typedef struct {
    Packet *first, *last;
} Way;

static Shared *shared;
static Way ways[REGIONS_MAX][REGIONS_MAX];
static unsigned held;
static uint32_t first_network;
static int regions;

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t) now.tv_sec * 1000000 + (uint64_t) now.tv_nsec / 1000;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int open_device(const char *name) {
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct ifreq asked = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strncpy(asked.ifr_name, name, IFNAMSIZ - 1);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &asked) != 0)
        fail("/dev/net/tun");
    return fd;
}

static int region_of(const uint8_t *address) {
    uint32_t host;
    memcpy(&host, address, sizeof host);
    uint32_t number = (ntohl(host) - first_network) >> 8;
    return number < (uint32_t) regions ? (int) number : -1;
}

static int kind_of(const uint8_t *bytes, size_t size) {
    size_t header = (size_t) (bytes[0] & 15) * 4;
    if (bytes[9] != IPPROTO_TCP || size < header + 4)
        return OTHER;
    for (size_t at = header; at < header + 4; at += 2) {
        unsigned port = (unsigned) bytes[at] << 8 | bytes[at + 1];
        if (port == 2379 || port == 2380)
            return ETCD;
        if (port == 6379)
            return REDIS;
        if (port == 7410)
            return BUS;
    }
    return OTHER;
}

static void take(const uint8_t *bytes, size_t size) {
    int from = size >= 20 && bytes[0] >> 4 == 4 ? region_of(bytes + 12) : -1;
    int to = from < 0 ? -1 : region_of(bytes + 16);
    if (to < 0) {
        shared->strays++;
        return;
    }
    if (held == HELD_MAX) {
        shared->overruns++;
        return;
    }
    Packet *packet = malloc(sizeof *packet + size);
    if (packet == NULL)
        fail("malloc");
    packet->next = NULL;
    packet->due_us = now_us() + shared->delay_us[from][to];
    packet->size = size;
    memcpy(packet->bytes, bytes, size);
    Way *way = &ways[from][to];
    if (way->first == NULL) {
        way->first = packet;
    } else {
        if (packet->due_us < way->last->due_us)
            packet->due_us = way->last->due_us;
        way->last->next = packet;
    }
    way->last = packet;
    held++;
    Count *count = &shared->count[from][to][kind_of(bytes, size)];
    count->packets++;
    count->bytes += size;
}

// Writes what is due on one way; when the next of it is.
static uint64_t give(int fd, Way *way, uint64_t now) {
    while (way->first != NULL && way->first->due_us <= now) {
        Packet *packet = way->first;
        if (now - packet->due_us > shared->late_us)
            shared->late_us = now - packet->due_us;
        if (write(fd, packet->bytes, packet->size) < 0 && errno != EINVAL)
            fail("write");
        way->first = packet->next;
        held--;
        free(packet);
    }
    return way->first == NULL ? UINT64_MAX : way->first->due_us;
}

static void carry(int fd) {
    static uint8_t bytes[PACKET_BYTES];
    for (;;) {
        for (int count = 0; count < READ_AT_ONCE; count++) {
            ssize_t size = read(fd, bytes, sizeof bytes);
            if (size < 0 && errno == EAGAIN)
                break;
            if (size < 0)
                fail("read");
            take(bytes, (size_t) size);
        }
        uint64_t now = now_us(), next = UINT64_MAX;
        for (int from = 0; from < regions; from++)
            for (int to = 0; to < regions; to++) {
                uint64_t due = give(fd, &ways[from][to], now);
                next = due < next ? due : next;
            }
        // No deadline when nothing is under way: the test ends this program.
        uint64_t wait_us = next == UINT64_MAX ? 1000000 : next - now;
        struct timespec wait = {(time_t) (wait_us / 1000000), (long) (wait_us % 1000000) * 1000};
        struct pollfd readable = {fd, POLLIN, 0};
        if (ppoll(&readable, 1, &wait, NULL) < 0 && errno != EINTR)
            fail("ppoll");
    }
}

int main(int argc, char **argv) {
    if (argc != 5)
        return 2;
    struct in_addr first;
    regions = atoi(argv[4]);
    if (inet_aton(argv[3], &first) == 0 || regions < 1 || regions > REGIONS_MAX)
        return 2;
    first_network = ntohl(first.s_addr);
    int file = open(argv[2], O_RDWR | O_CLOEXEC);
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (found == MAP_FAILED)
        fail(argv[2]);
    shared = found;
    // It ends with the test, and comes before whatever else keeps the machine busy: its delays are what is tested with.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1000);
    if (setpriority(PRIO_PROCESS, 0, -20) != 0)
        fail("setpriority");
    int fd = open_device(argv[1]);
    if (write(STDOUT_FILENO, "ready\n", 6) != 6)
        fail("stdout");
    carry(fd);
}
