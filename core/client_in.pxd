# Client in: sockets from connect() on, and what comes in through them.
#
# The mirror image of intake: one recv into the client's one buffer, in front of it what was left of an unfinished
# frame; whatever is whole is acted on, and the rest waits in a ring that an idle connection does not have.

from libc.stdint cimport uint32_t

from core.client cimport Client, ClientConn

# connect() as many as pace and bounds allow now.
cdef void client_dial_due(Client *client) noexcept nogil
# How long until client_dial_due makes sense again, ms; -1: nothing waits for time.
cdef int client_dial_wait(Client *client) noexcept nogil
# What a ready socket asks for, as epoll's events.
cdef void client_on_socket(Client *client, ClientConn *conn, uint32_t events) noexcept nogil
