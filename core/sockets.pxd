# Sockets: what the kernel's interface of streams is called here.

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int, const msghdr *, int)
    ssize_t send(int, const void *, size_t, int)
    ssize_t recv(int, void *, size_t, int)
    enum:
        MSG_NOSIGNAL
        MSG_DONTWAIT

cdef extern from * nogil:
    """
    #include <linux/sockios.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    static inline int sockets_unacked(int fd) {
        int bytes = 0;
        return ioctl(fd, SIOCOUTQ, &bytes) == 0 ? bytes : 0;
    }
    static inline void sockets_abort(int fd) {
        struct linger now = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    """
    int sockets_unacked(int)    # bytes that were sent and that the peer's kernel has not acknowledged
    void sockets_abort(int)     # let close() throw away what is unsent and say RST, so that the kernel keeps nothing
