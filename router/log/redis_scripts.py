"""The scripts that run inside Redis, where a batch of one shard is checked and appended as a whole.

Epochs are compared as text of 20 digits, since Lua's numbers are exact only up to 2^53.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Script:
    """A script and the name by which Redis knows it."""

    text: bytes

    @property
    def sha(self) -> bytes:
        return hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


# What APPEND does once it takes a batch: see there.
APPENDS = b"""\
local time
local function now_ms()
  time = time or redis.call('TIME')
  return tonumber(time[1]) * 1000
end
local at = 8
for channel = 5, #KEYS do
  local kept, expire, records = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  at = at + 3
  for _ = 1, records do
    local done = redis.pcall('XADD', KEYS[channel], 'MAXLEN', '~', kept, ARGV[at], 'm', ARGV[at + 1])
    if type(done) == 'table' then
      -- An id that is not above the last one: the record is there already.
      if not string.find(done['err'], 'equal or smaller', 1, true) then return done end
    elseif ARGV[at + 1] == '' then
      redis.call('XDEL', KEYS[channel], ARGV[at])
    end
    at = at + 2
  end
  if expire ~= '0' then
    local forgotten, listed = string.match(expire, '^(%d+):?(%d*)$')
    redis.call('PEXPIRE', KEYS[channel], forgotten)
    if listed ~= '' then
      local leaves = string.format('%.0f', now_ms() + tonumber(listed))
      redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', string.format('%.0f', now_ms()))
      redis.call('ZADD', KEYS[4], leaves, KEYS[channel])
      redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1025)
      redis.call('PEXPIREAT', KEYS[4], redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')[2])
    end
  end
end
for index = 2, 3 do
  local blob, window = ARGV[index + 4], ARGV[index + 1]
  if blob ~= '' then
    local oldest = string.format('%.0f', now_ms() - tonumber(window))
    redis.call('XADD', KEYS[index], 'MINID', '~', oldest, '*', 'r', blob)
    if batch % 64 == 0 then redis.call('XTRIM', KEYS[index], 'MAXLEN', '~', ARGV[5]) end
    redis.call('PEXPIRE', KEYS[index], window)
  end
end
"""

# KEYS: the shard's epoch, its keys, its tail, its list of global channels, then channels.
# ARGV: epoch, number of the batch in this shard, window of the keys in ms, window of the tail in ms, entries of those
# two kept at most, the keys, the tail, for each channel how many messages are kept, ms until it is forgotten (0: as it
# is) and, behind a colon, for how many ms it is listed, if it is; number of records, and for each record id and bytes;
# at last 1 to accept that batches before it are missing.
# The list is by the time at which a channel leaves it, the last 1024 at most: eight times what a router tells of.
# Answers the number of the last batch that the shard has: the one given, unless an earlier one is missing; -1: deposed.
APPEND = Script(
    b"""#!lua
local state = redis.call('HMGET', KEYS[1], 'epoch', 'batch')
local batch, have = tonumber(ARGV[2]), 0
if state[1] then
  if state[1] > ARGV[1] then return -1 end
  if state[1] == ARGV[1] then have = tonumber(state[2]) end
end
if batch > have + 1 and ARGV[#ARGV] == '0' then return have end
if batch <= have then
  -- Written as it is, so that a WAIT after it waits for all that came before.
  redis.call('HSET', KEYS[1], 'batch', string.format('%.0f', have))
  return batch
end
"""
    + APPENDS
    + b"""redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'batch', ARGV[2])
return batch
"""
)

# KEYS: an epoch. ARGV: a new one, who takes it. Answers the epoch that is there then; the new one is taken only if it
# is higher, or was taken by the same before: a directory that lost its data gives epochs that others had.
FENCE = Script(b"""#!lua
local state = redis.call('HMGET', KEYS[1], 'epoch', 'holder')
if state[1] == ARGV[1] and state[2] == ARGV[2] then return '' end
if state[1] and state[1] >= ARGV[1] then return state[1] end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'batch', '0', 'holder', ARGV[2])
return ''
""")

# KEYS: the log's root. ARGV: a new epoch, the format that its router writes, who that is, 1 if it has had the log
# before. Answers the epoch that is there if the new one is not higher (or up to which others have claims), and the
# format if that is a later one: then nothing is changed. Two empty strings: it has the log now.
OPEN = Script(b"""#!lua
local root = redis.call('HMGET', KEYS[1], 'epoch', 'format', 'claims')
if root[2] and (tonumber(root[2]) or 1 / 0) > tonumber(ARGV[2]) then return {'', root[2]} end
if root[1] and root[1] >= ARGV[1] then return {root[1], ''} end
if ARGV[4] ~= '1' and root[3] and root[3] >= ARGV[1] then return {root[3], ''} end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'batch', '0', 'format', ARGV[2], 'holder', ARGV[3])
return {'', ''}
""")

# KEYS: the root of a log that several routers write. ARGV: its format. Answers the format of what is there, 0 if that
# is one router's.
JOIN = Script(b"""#!lua
local root = redis.call('HMGET', KEYS[1], 'epoch', 'format')
if root[1] then return '0' end
if root[2] then return root[2] end
redis.call('HSET', KEYS[1], 'format', ARGV[1])
return ARGV[1]
""")

# KEYS: the log's root. ARGV: the epoch of the router that has the log, one that no later router may take.
CLAIMS = Script(b"""#!lua
local root = redis.call('HMGET', KEYS[1], 'epoch', 'claims')
if root[1] and root[1] > ARGV[1] then return redis.error_reply('-DEPOSED by ' .. root[1]) end
if not root[2] or root[2] < ARGV[2] then redis.call('HSET', KEYS[1], 'claims', ARGV[2]) end
return 1
""")

# KEYS: a session. ARGV: 1 if it is over, what HELLO said or nothing, when it expires or nothing, its date or nothing,
# ms for which that is kept of one that is over, number of fields to set, how many of these, the last ones, only if
# their position (epoch-offset) is higher than what is there, fields and values, fields to remove. What is not known and
# not opened stays unknown. A date (8 bytes name an order, digits follow) never goes back in the same order.
# Where several routers write: KEYS has the shard's epoch as well, and ARGV, at last, that of who writes. Answers -1 if
# the shard is another's now.
SESSION = Script(b"""#!lua
if KEYS[2] then
  local leader = redis.call('HGET', KEYS[2], 'epoch')
  if leader and leader > ARGV[#ARGV] then return -1 end
end
local function above(one, other)
  if #one ~= #other then return #one > #other end
  return one > other
end
local function higher(position, stored)
  if not stored then return true end
  local epoch, offset = string.match(position, '^(%d+)-(%d+)$')
  local before, held = string.match(stored, '^(%d+)-(%d+)$')
  if epoch ~= before then return above(epoch, before) end
  return above(offset, held)
end
local date, stored = ARGV[4], redis.call('HGET', KEYS[1], 'date')
if date == '' or stored and stored:sub(1, 8) == date:sub(1, 8) and stored:sub(9) > date:sub(9) then date = stored end
if ARGV[1] == '1' then redis.call('DEL', KEYS[1]) end
if ARGV[2] ~= '' then
  if redis.call('HEXISTS', KEYS[1], 'opened') == 0 then redis.call('PERSIST', KEYS[1]) end
  redis.call('HSET', KEYS[1], 'opened', ARGV[2])
elseif redis.call('HEXISTS', KEYS[1], 'opened') == 0 then
  if ARGV[1] == '1' and date then
    redis.call('HSET', KEYS[1], 'date', date)
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
  end
  return 0
end
if date then redis.call('HSET', KEYS[1], 'date', date) end
local fields = tonumber(ARGV[6])
local counts = 7 + 2 * (fields - tonumber(ARGV[7]))
for at = 8, 6 + 2 * fields, 2 do
  if at <= counts or higher(ARGV[at + 1], redis.call('HGET', KEYS[1], ARGV[at])) then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  end
end
for at = 8 + 2 * fields, #ARGV do redis.call('HDEL', KEYS[1], ARGV[at]) end
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'expires', ARGV[3])
  redis.call('PEXPIREAT', KEYS[1], ARGV[3])
end
return 1
""")

# KEYS: a cursor. ARGV: the new one, 20 digits, a hyphen, 20 digits; ms until it is forgotten. For several routers as
# above.
CURSOR = Script(b"""#!lua
if KEYS[2] then
  local leader = redis.call('HGET', KEYS[2], 'epoch')
  if leader and leader > ARGV[#ARGV] then return -1 end
end
local stored = redis.call('GET', KEYS[1])
if not stored or stored < ARGV[1] then stored = ARGV[1] end
redis.call('SET', KEYS[1], stored, 'PX', ARGV[2])
return 1
""")

# KEYS: a channel. ARGV: how many messages to read at most, how many bytes of them, how many bytes of each do not count.
# Answers its last id, also when that message is trimmed, and its newest messages, newest first; nothing if the channel
# is not known.
LOAD = Script(b"""#!lua flags=no-writes
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local found = {}
local said = redis.call('XINFO', 'STREAM', KEYS[1])
for at = 1, #said, 2 do
  if said[at] == 'last-generated-id' then found[1] = said[at + 1] end
end
local messages, bytes, from = tonumber(ARGV[1]), tonumber(ARGV[2]), '+'
while messages > 0 do
  local entries = redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', math.min(messages, 100))
  for _, entry in ipairs(entries) do
    bytes = bytes - (#entry[2][2] - ARGV[3])
    if bytes < 0 then return found end
    found[#found + 1] = entry[2][2]
  end
  if #entries < 100 then return found end
  messages = messages - #entries
  from = '(' .. entries[#entries][1]
end
return found
""")

# KEYS: a channel. ARGV: how many bytes of a message to read. Answers its last id and the first bytes of its newest
# message; nothing if none is kept.
NEWEST = Script(b"""#!lua flags=no-writes
local entries = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #entries == 0 then return {} end
local said = redis.call('XINFO', 'STREAM', KEYS[1])
for at = 1, #said, 2 do
  if said[at] == 'last-generated-id' then return {said[at + 1], entries[1][2][2]:sub(1, tonumber(ARGV[1]))} end
end
""")

# KEYS: a channel. ARGV: the wall clock's ms before which messages are too old, ms until the channel is forgotten, how
# many bytes of messages are kept, how many bytes of each do not count. Reads when a record was made from its bytes
# (core/log_records.pxd), oldest first, and trims up to the first that is young enough, at most 100 at a time. What is
# beyond the bytes goes as LOAD would leave it out; only a channel that takes more memory than that is looked through. A
# channel that would never be forgotten (it came back after its server was replaced) is, from now on.
TRIM = Script(b"""#!lua
local oldest = tonumber(ARGV[1])
local trimmed = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 100)) do
  if struct.unpack('<I8', entry[2][2], 25) >= oldest then break end
  trimmed = trimmed + redis.call('XDEL', KEYS[1], entry[1])
end
if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
local bytes, from, kept = tonumber(ARGV[3]), '+', nil
if (redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0) or 0) <= bytes then return trimmed end
while true do
  local entries = redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', 100)
  for _, entry in ipairs(entries) do
    bytes = bytes - (#entry[2][2] - ARGV[4])
    if bytes < 0 then
      if not kept then return trimmed + redis.call('XTRIM', KEYS[1], 'MAXLEN', 0) end
      return trimmed + redis.call('XTRIM', KEYS[1], 'MINID', kept)
    end
    kept = entry[1]
  end
  if #entries < 100 then return trimmed end
  from = '(' .. kept
end
""")

ALL = (APPEND, FENCE, OPEN, JOIN, CLAIMS, SESSION, CURSOR, LOAD, NEWEST, TRIM)
