"""The scripts that run inside Redis where other regions have the log as well (router/log/bridge.py).

Beside `hf:{h7}:epoch` they keep, of shard 7:

    hf:{h7}:bridge   a stream, id <shard epoch>-<batch>: field a: what APPEND was called with, as MessagePack, field b,
                     unless it is the batch before in the same epoch: the id before this one, 0-0: none. How much is in
                     it is known by segments: the shard's hash has in its field `bytes` what came since the last one,
                     in `marks` the ids at which the last ones ended
    hf:{h7}:states   a stream: field k: s or c, field a: what SESSION or CURSOR was called with

and publish what they add there under the same name, so that a follower is told of it without asking. A shard's
position is the id of the last batch that it has; where an epoch began without a batch so far, the shard's hash has it
in its field `was`.
"""

from router.log.redis_scripts import APPENDS, CURSOR, SESSION, Script

BRIDGE_ENTRIES = 1024
# Of entries, without what Redis needs beside: 256 shards are 1 GiB at most.
BRIDGE_BYTES = 4 * 1024 * 1024
# So many whole ones are kept, and the one that is begun.
SEGMENTS = 8
STATES_ENTRIES = 1024
_HEAD = b"#!lua\n"

# A decimal without zeros before it, as in ids; the order of two; the position that a shard's hash says.
_POSITIONS = b"""\
local function plain(digits) return string.match(digits, '^0*(%d+)$') end
local function above(one, other)
  local epoch, batch = string.match(one, '^(%d+)-(%d+)$')
  local epoch2, batch2 = string.match(other, '^(%d+)-(%d+)$')
  if epoch ~= epoch2 then
    if #epoch ~= #epoch2 then return #epoch > #epoch2 end
    return epoch > epoch2
  end
  if #batch ~= #batch2 then return #batch > #batch2 end
  return batch > batch2
end
local function position(state)
  if state[1] and state[2] and state[2] ~= '0' then return plain(state[1]) .. '-' .. state[2] end
  return state[3] or '0-0'
end
"""

_APPLY = b"local function apply(KEYS, ARGV, batch)\n" + APPENDS + b"end\n"

# `shard` is how its keys begin; `before` the position before this entry.
_ADD = b"""\
local function add(shard, entry, epoch, batch, before)
  local id = epoch .. '-' .. string.format('%.0f', batch)
  if before == epoch .. '-' .. string.format('%.0f', batch - 1) then
    redis.call('XADD', shard .. 'bridge', 'MAXLEN', '~', ENTRIES, id, 'a', entry)
  else
    redis.call('XADD', shard .. 'bridge', 'MAXLEN', '~', ENTRIES, id, 'a', entry, 'b', before)
  end
  if redis.call('HINCRBY', shard .. 'epoch', 'bytes', #entry) >= SEGMENT then
    local marks = (redis.call('HGET', shard .. 'epoch', 'marks') or '') .. id .. ' '
    local _, segments = string.gsub(marks, ' ', '')
    if segments > SEGMENTS then
      redis.call('XTRIM', shard .. 'bridge', 'MINID', string.match(marks, '^%S+'))
      marks = string.match(marks, '^%S+ (.*)$')
    end
    redis.call('HSET', shard .. 'epoch', 'bytes', '0', 'marks', marks)
  end
  return id
end
"""

# As APPEND; what it takes, it adds to the bridge and publishes there: id, id before it, entry.
_APPEND = b"""\
local state = redis.call('HMGET', KEYS[1], 'epoch', 'batch', 'was')
local batch, have = tonumber(ARGV[2]), 0
if state[1] then
  if state[1] > ARGV[1] then return -1 end
  if state[1] == ARGV[1] then have = tonumber(state[2]) end
end
if batch > have + 1 and ARGV[#ARGV] == '0' then return have end
if batch <= have then
  redis.call('HSET', KEYS[1], 'batch', string.format('%.0f', have))
  return batch
end
local failed = apply(KEYS, ARGV, batch)
if failed then return failed end
local shard, before = string.sub(KEYS[1], 1, -6), position(state)
local entry = cmsgpack.pack({KEYS, ARGV})
local id = add(shard, entry, plain(ARGV[1]), batch, before)
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'batch', ARGV[2])
redis.call('PUBLISH', shard .. 'bridge', id .. ' ' .. before .. ' ' .. entry)
return batch
"""

# KEYS: the shard's epoch. ARGV: an entry, the id before it in the bridge from which it is, the epoch of who leads (or
# its own, if that is higher). Does what was done there. Answers the shard's position: that of the entry, unless the
# shard was not at the one before; nothing if the shard is a later leader's.
_REPEAT = b"""\
local leader, before = ARGV[3], ARGV[2]
local state = redis.call('HMGET', KEYS[1], 'epoch', 'batch', 'was')
if state[1] and state[1] > leader then return '' end
local at = position(state)
if at ~= before then
  -- Written as it is, so that a WAIT after it waits for whoever brought it here.
  if state[1] then redis.call('HSET', KEYS[1], 'epoch', state[1]) end
  return at
end
local called = cmsgpack.unpack(ARGV[1])
local keys, args = called[1], called[2]
local failed = apply(keys, args, tonumber(args[2]))
if failed then return failed end
local id = add(string.sub(KEYS[1], 1, -6), ARGV[1], plain(args[1]), tonumber(args[2]), before)
if args[1] == leader then
  redis.call('HSET', KEYS[1], 'epoch', leader, 'batch', args[2])
else
  redis.call('HSET', KEYS[1], 'epoch', leader, 'batch', '0', 'was', id)
end
if redis.call('HEXISTS', KEYS[1], 'copy') == 1 then redis.call('HSET', KEYS[1], 'copy', '') end
return id
"""

# KEYS: the shard's epoch. ARGV: a new one and, of who is to lead with it, who that is. Answers the epoch that is there,
# if that is not lower and another's, and the position. A server that lost the epoch, and was copied what came under it,
# has its batches.
FENCE_BRIDGED = Script(
    _HEAD
    + _POSITIONS
    + b"""\
local state = redis.call('HMGET', KEYS[1], 'epoch', 'batch', 'was', 'holder')
local at = position(state)
if ARGV[2] and state[1] == ARGV[1] and state[4] == ARGV[2] then return {'', at} end
if state[1] and state[1] >= ARGV[1] then return {state[1], at} end
local epoch, batch = string.match(at, '^(%d+)-(%d+)$')
if epoch ~= plain(ARGV[1]) then batch = '0' end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'batch', batch, 'was', at, 'holder', ARGV[2] or '')
if ARGV[2] then
  redis.call('HDEL', KEYS[1], 'copy')
elseif redis.call('HEXISTS', KEYS[1], 'copy') == 1 then
  redis.call('HSET', KEYS[1], 'copy', '')
end
return {'', at}
"""
)

# KEYS: the shard's epoch. Answers it, and the position.
WHERE = Script(
    b"#!lua flags=no-writes\n"
    + _POSITIONS
    + b"""\
local state = redis.call('HMGET', KEYS[1], 'epoch', 'batch', 'was')
return {state[1] or '', position(state)}
"""
)

# KEYS: the shard's epoch. ARGV: the position that all have, the epoch of who leads. Takes back the last batch of the
# bridge, if it is beyond that. Answers the position that is left then and, if something was taken back, of each record
# the key of its channel and its id; nothing at all: the shard is a later leader's; ' ': the bridge does not go on to
# where the shard is. A channel's last id is then that of the newest record that is left, or of the last one that
# XDEL removed before (a position alone, or too old a message), if that is known.
UNDO = Script(
    _HEAD
    + _POSITIONS
    + b"""\
local state = redis.call('HMGET', KEYS[1], 'epoch', 'batch', 'was')
if state[1] and state[1] > ARGV[2] then return {} end
local at, shard = position(state), string.sub(KEYS[1], 1, -6)
if not above(at, ARGV[1]) then return {at} end
local entry = redis.call('XREVRANGE', shard .. 'bridge', '+', '-', 'COUNT', 1)[1]
if not entry or entry[1] ~= at then return {' '} end
local called, before = cmsgpack.unpack(entry[2][2]), entry[2][4]
local keys, args = called[1], called[2]
if not before then before = string.format('%s-%.0f', plain(args[1]), tonumber(args[2]) - 1) end
local answer, ids, order, place = {before}, {}, {}, 8
for channel = 5, #keys do
  local key, records = keys[channel], tonumber(args[place + 2])
  place = place + 3
  if not ids[key] then ids[key], order[#order + 1] = {}, key end
  for _ = 1, records do
    ids[key][#ids[key] + 1] = args[place]
    answer[#answer + 1] = key
    answer[#answer + 1] = args[place]
    place = place + 2
  end
end
for _, key in ipairs(order) do
  if redis.call('EXISTS', key) == 1 then
    local removed, added = '0-0', '0'
    local said = redis.call('XINFO', 'STREAM', key)
    for index = 1, #said, 2 do
      if said[index] == 'max-deleted-entry-id' then removed = said[index + 1] end
      if said[index] == 'entries-added' then added = tostring(said[index + 1]) end
    end
    for _, id in ipairs(ids[key]) do redis.call('XDEL', key, id) end
    if not above(ids[key][1], removed) then removed = '0-0' end
    local newest, last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1], removed
    if newest and above(newest[1], last) then last = newest[1] end
    if last == '0-0' then
      redis.call('DEL', key)
      redis.call('ZREM', keys[4], key)
    elseif removed ~= '0-0' then
      redis.call('XSETID', key, last, 'ENTRIESADDED', added, 'MAXDELETEDID', removed)
    else
      redis.call('XSETID', key, last)
    end
  end
end
for index = 2, 3 do
  if args[index + 4] ~= '' then
    for _, one in ipairs(redis.call('XREVRANGE', keys[index], '+', '-', 'COUNT', 100)) do
      if one[2][2] == args[index + 4] then
        redis.call('XDEL', keys[index], one[1])
        break
      end
    end
  end
end
redis.call('XDEL', shard .. 'bridge', at)
if before == '0-0' then redis.call('DEL', shard .. 'bridge') else redis.call('XSETID', shard .. 'bridge', before) end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'batch', '0', 'was', before)
if redis.call('HEXISTS', KEYS[1], 'copy') == 1 then redis.call('HSET', KEYS[1], 'copy', '') end
return answer
"""
)

# A copy of a shard takes a while, and what it puts here was read a while ago: it goes on only as long as nobody else
# has changed the shard. Until then the shard's hash has the copy's name in its field `copy`, and afterwards an empty
# one: the shard is not whole. The field goes when a copy has ended, or who leads it here goes on with what is there.

# KEYS: the shard's epoch. ARGV: the epoch of who leads, a name for the copy that begins. From now on nothing is taken
# from a leader of before, who may not know that he is none. Answers 0 if it is a later leader's.
BEGIN_COPY = Script(
    _HEAD
    + _POSITIONS
    + b"""\
local state = redis.call('HMGET', KEYS[1], 'epoch', 'batch', 'was')
if state[1] and state[1] > ARGV[1] then return 0 end
if state[1] ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'batch', '0', 'was', position(state))
end
redis.call('HSET', KEYS[1], 'copy', ARGV[2])
return 1
"""
)

# KEYS: a key, the shard's epoch. ARGV: the copy's name, what another region's log has under that key (DUMP) and for how
# many ms that is kept; nothing: it has no such key. Answers -1 if the copy is over.
COPY_KEY = Script(
    b"""\
#!lua
if redis.call('HGET', KEYS[2], 'copy') ~= ARGV[1] then return -1 end
if ARGV[2] then redis.call('RESTORE', KEYS[1], ARGV[3], ARGV[2], 'REPLACE') else redis.call('UNLINK', KEYS[1]) end
return {}
"""
)

# The same of a channel; KEYS also: a key of the same shard that is used in between. Answers the ids of those records,
# newest first, that were in ours alone; what is older than all that is kept there was trimmed.
COPY_CHANNEL = Script(
    _HEAD
    + _POSITIONS
    + b"""\
if redis.call('HGET', KEYS[2], 'copy') ~= ARGV[1] then return -1 end
local oldest, answer = '0-0', {}
if ARGV[2] then
  redis.call('RESTORE', KEYS[3], ARGV[3], ARGV[2], 'REPLACE')
  local kept = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)[1]
  if kept then oldest = kept[1] end
  local said = redis.call('XINFO', 'STREAM', KEYS[3])
  for index = 1, #said, 2 do
    if not kept and said[index] == 'last-generated-id' then oldest = said[index + 1] end
  end
end
local from, left = '+', true
while left do
  local some = redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', 100)
  for _, one in ipairs(some) do
    left = above(one[1], oldest) and not (ARGV[2] and redis.call('XRANGE', KEYS[3], one[1], one[1])[1])
    if not left then break end
    answer[#answer + 1] = one[1]
  end
  if #some < 100 then break end
  from = '(' .. some[#some][1]
end
if ARGV[2] then redis.call('RENAME', KEYS[3], KEYS[1]) else redis.call('UNLINK', KEYS[1]) end
return answer
"""
)

# KEYS: the shard's epoch. ARGV: the copy's name, the epoch of who leads, the position that the shard has now, whatever
# it had, the field in which is kept up to where that region's states are known, up to where they are. The bridge begins
# anew. Answers 0 if the copy is over, or it is a later leader's.
PLACE = Script(
    b"""\
#!lua
local state = redis.call('HMGET', KEYS[1], 'epoch', 'copy')
if state[1] and state[1] > ARGV[2] or state[2] ~= ARGV[1] then return 0 end
redis.call('DEL', string.sub(KEYS[1], 1, -6) .. 'bridge')
redis.call('HDEL', KEYS[1], 'bytes', 'marks', 'copy')
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'batch', '0', 'was', ARGV[3], ARGV[4], ARGV[5])
return 1
"""
)


def _of_state(script: Script, name: bytes) -> bytes:
    """What SESSION or CURSOR does, as a function."""
    return b"local function %s(KEYS, ARGV)\n%send\n" % (name, script.text.removeprefix(_HEAD))


_STATE = b"""\
local function told(shard, kind, entry)
  local id = redis.call('XADD', shard .. 'states', 'MAXLEN', '~', ENTRIES, '*', 'k', kind, 'a', entry)
  redis.call('PUBLISH', shard .. 'states', id .. ' ' .. kind .. ' ' .. entry)
end
"""


def _state(script: Script, name: bytes) -> Script:
    call = b"""\
local done = %s(KEYS, ARGV)
if done ~= -1 then told(string.sub(KEYS[2], 1, -6), '%s', cmsgpack.pack({KEYS, ARGV})) end
return done
"""
    text = _HEAD + _of_state(script, name) + _STATE + call % (name, name[:1])
    return Script(text.replace(b"ENTRIES", b"%d" % STATES_ENTRIES))


SESSION_BRIDGED = _state(SESSION, b"session")
CURSOR_BRIDGED = _state(CURSOR, b"cursor")

# KEYS: the shard's epoch. ARGV: of an entry of another region's states its kind, its rest, its id and the id before it
# (0-0: none), the epoch of who leads, the field in which is kept up to where that region's states are known. Answers -1
# if it is a later leader's, or they are not known up to the one before.
REPEAT_STATE = Script(
    (
        _HEAD
        + _of_state(SESSION, b"session")
        + _of_state(CURSOR, b"cursor")
        + _STATE
        + b"""\
if (redis.call('HGET', KEYS[1], ARGV[6]) or '0-0') ~= ARGV[4] then return -1 end
local called = cmsgpack.unpack(ARGV[2])
local keys, args = called[1], called[2]
args[#args] = ARGV[5]
local done = ARGV[1] == 's' and session(keys, args) or ARGV[1] == 'c' and cursor(keys, args)
if done == -1 then return done end
told(string.sub(KEYS[1], 1, -6), ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], ARGV[6], ARGV[3])
if redis.call('HEXISTS', KEYS[1], 'copy') == 1 then redis.call('HSET', KEYS[1], 'copy', '') end
return done
"""
    ).replace(b"ENTRIES", b"%d" % STATES_ENTRIES)
)

# KEYS: states. ARGV: what some say. Answers whether one of these is among them.
HAS_STATE = Script(
    b"""\
#!lua flags=no-writes
local from, wanted = '+', {}
for _, said in ipairs(ARGV) do wanted[said] = true end
while true do
  local some = redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', 100)
  for _, one in ipairs(some) do
    if wanted[one[2][4]] then return 1 end
  end
  if #some < 100 then return 0 end
  from = '(' .. some[#some][1]
end
"""
)

# KEYS: the bans. ARGV: a user, what is said of the ban (MessagePack: until, reason, since). The later one stays, and of
# two from the same time the one that ends sooner: a ban that was lifted. Answers whether it was taken.
MERGE_BAN = Script(
    _HEAD
    + b"""\
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored then
  local had, new = cmsgpack.unpack(stored), cmsgpack.unpack(ARGV[2])
  if had[3] > new[3] or had[3] == new[3] and had[1] <= new[1] then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""
)


def _adding(script: bytes, entries: int, bytes_: int) -> Script:
    add = _ADD.replace(b"ENTRIES", b"%d" % entries).replace(b"SEGMENTS", b"%d" % SEGMENTS)
    return Script(_HEAD + _POSITIONS + _APPLY + add.replace(b"SEGMENT", b"%d" % (bytes_ // (SEGMENTS + 1))) + script)


def append_bridged(entries: int = BRIDGE_ENTRIES, bytes_: int = BRIDGE_BYTES) -> Script:
    """APPEND, where a bridge keeps so many entries (some more, up to a node of the stream), and of them so many bytes
    (some more, up to an entry).
    """
    return _adding(_APPEND, entries, bytes_)


def repeat(entries: int = BRIDGE_ENTRIES, bytes_: int = BRIDGE_BYTES) -> Script:
    """What a follower does with an entry of another region's bridge."""
    return _adding(_REPEAT, entries, bytes_)


BRIDGED = (SESSION_BRIDGED, CURSOR_BRIDGED, FENCE_BRIDGED, WHERE)
"""What a router that leads needs, beside `append_bridged`."""
