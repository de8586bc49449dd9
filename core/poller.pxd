# Poller: epoll, level-triggered, and what an event's tag means.
#
# A tag is a connection's handle, or one of the TAG_ numbers, which no handle is: its high half is never 0. Writing
# is only watched for while a connection is blocked, so that an idle one costs no system call.

from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP

cdef enum:
    POLLER_EVENTS = 512         # taken in one turn
    TAG_TCP = 1
    TAG_WS = 2
    TAG_WAKE = 3
    TAG_BUS = 4                 # and the numbers from there on, up to 1000: a router's bus
    TAG_LINKS = 1024            # and the numbers from there on, two a link: a worker's links
    TAG_LINKS_LAST = 2047


cdef inline int poller_watch(int epoll_fd, int fd, uint64_t tag, int operation, uint32_t events) noexcept nogil:
    """Add or modify what is watched of `fd`; -1 with errno."""
    cdef epoll_event event
    event.events = events
    event.data.u64 = tag
    return epoll_ctl(epoll_fd, operation, fd, &event)
