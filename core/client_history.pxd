# Client history: HISTORY as a client asks for it, also for what it missed while it was away.
#
# Who comes back to a channel that went on without it asks for the offsets between its last one and where JOIN put it,
# page by page. Invariant: of these, each is counted as caught up or as lost once the last page came, or is asked for
# again after the next JOIN.

from libc.stdint cimport uint32_t, uint64_t

from core.client cimport Client, ClientConn, ClientRequest
from core.mpack cimport MpReader

# The newest `limit` messages, which are not checked.
cdef void history_ask(Client *client, ClientConn *conn, const char *name, uint32_t size, uint32_t limit) noexcept nogil
# What is missing after `since`, up to and with `until`; the connection may be away after it.
cdef void history_catch_up(Client *client, ClientConn *conn, uint32_t channel, uint64_t epoch, uint64_t since,
                           uint64_t until) noexcept nogil
# REPLY to either; the request is the caller's to free.
cdef void history_on_reply(Client *client, ClientConn *conn, ClientRequest *request, MpReader *options) noexcept nogil
# It will not be answered: what was to be caught up is lost. False: the channel was left meanwhile, and it is no matter.
cdef bint history_on_refusal(Client *client, ClientConn *conn, ClientRequest *request) noexcept nogil

# Enter a map and stand before the value of `key`; False: it is not there. The reader stays where it is then.
cdef bint client_map_find(MpReader *reader, const char *key) noexcept nogil
cdef uint64_t client_map_uint(const MpReader *reader, const char *key, uint64_t missing) noexcept nogil
