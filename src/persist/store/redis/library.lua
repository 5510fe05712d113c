-- Functions of Hotpool inside Redis. The name of the library contains a hash of this text, so that two versions never
-- share one. The schema is at the top of `persist/store/redis/mod.rs`.
--
-- A side of a shard is one hash. Its header is the field '#':
--   <epoch> <owner> 1 live <at> <generation>         the state of the shard
--   <epoch> <owner> 1 new <chunks> <generation>      a snapshot under way
-- Epoch and owner come first in every version of the header, so that an older program recognizes a newer owner.
-- Numbers are below 2^53, which Lua represents exactly. It writes only 14 digits of them, so those that may have more are
-- copied as text.

local function header(key)
  local read = redis.pcall('HGET', key, '#')
  if type(read) ~= 'string' then return nil end -- missing, or a key of another type
  local epoch, owner, rest = string.match(read, '^(%d+) (%S+) (.+)$')
  if not epoch then return nil end
  local state, number, generation = string.match(rest, '^1 (%a+) (%d+) (%d+)$')
  return {
    epoch = tonumber(epoch), owner = owner, state = state, number = tonumber(number), digits = number,
    generation = generation, text = read,
  }
end

-- Whether a newer owner has the side, or another owner of our epoch.
local function fenced(found, epoch, owner)
  return found ~= nil and (found.epoch > epoch or (found.epoch == epoch and found.owner ~= owner))
end

-- Whether one side is older than the other, which is live: a failover, or a slot that moves key by key, may bring a side back
-- that was replaced.
local function older(found, live)
  return live ~= nil and live.state == 'live'
    and (found.epoch < live.epoch or (found.epoch == live.epoch and found.number < live.number))
end

local function write(key, epoch, owner, state, number, generation, args, first)
  -- Rows are encoded as runs: 'P' <count> field value ..., or 'D' <count> field ... Runs are short enough for `unpack`.
  local i = first
  while i <= #args do
    local count = tonumber(args[i + 1])
    local last = i + 1 + count
    if args[i] == 'P' then
      redis.call('HSET', key, unpack(args, i + 2, last))
    else
      redis.call('HDEL', key, unpack(args, i + 2, last))
    end
    i = last + 1
  end
  redis.call('HSET', key, '#', epoch .. ' ' .. owner .. ' 1 ' .. state .. ' ' .. number .. ' ' .. generation)
end

-- keys: the live side. args: epoch, owner, from, to, rows.
local function write_rows(keys, args)
  local key, epoch, owner = keys[1], tonumber(args[1]), args[2]
  -- The usual case: our header, exactly at `from`, and one run of puts. Then header and rows are one command.
  local ours = args[1] .. ' ' .. owner .. ' 1 live '
  local expected = ours .. args[3] .. ' '
  local read = redis.pcall('HGET', key, '#')
  if
    type(read) == 'string' and string.sub(read, 1, #expected) == expected
    and tonumber(args[3]) < tonumber(args[4]) and args[5] == 'P' and tonumber(args[6]) == #args - 6
  then
    args[5], args[6] = '#', ours .. args[4] .. string.sub(read, #expected)
    redis.call('HSET', key, unpack(args, 5))
    return 'ok'
  end
  local found = header(key)
  if fenced(found, epoch, owner) then return 'fenced' end
  if not found or found.epoch < epoch or found.state ~= 'live' then return 'gap' end
  local from, to = tonumber(args[3]), tonumber(args[4])
  if found.number < from then return 'gap' end
  if to <= found.number then return 'duplicate' end
  write(key, args[1], owner, 'live', args[4], found.generation, args, 5)
  return 'ok'
end

-- keys: the live side, the other. args: epoch, owner, generation, number, rows.
local function write_chunk(keys, args)
  local key, epoch, owner = keys[2], tonumber(args[1]), args[2]
  local live = header(keys[1])
  if fenced(live, epoch, owner) then return 'fenced' end
  local found = header(key)
  if fenced(found, epoch, owner) then return 'fenced' end
  -- The caller is wrong about the sides: a snapshot must not overwrite the live one.
  if found and found.state == 'live' and found.generation ~= args[3] and not older(found, live) then return 'gap' end
  local number, stored = tonumber(args[4]), 0
  if found and found.epoch == epoch and found.generation == args[3] then
    if found.state ~= 'new' or number < found.number then return 'duplicate' end
    stored = found.number
  end
  if number ~= stored then return 'gap' end
  if number == 0 then redis.call('UNLINK', key) end
  write(key, args[1], owner, 'new', number + 1, args[3], args, 5)
  return 'ok'
end

-- keys: the live side, the other. args: epoch, owner, generation, chunks, to, rows.
local function install(keys, args)
  local key, epoch, owner = keys[2], tonumber(args[1]), args[2]
  local live = header(keys[1])
  if fenced(live, epoch, owner) then return 'fenced' end
  local found = header(key)
  if fenced(found, epoch, owner) then return 'fenced' end
  local ours = found and found.epoch == epoch and found.generation == args[3]
  if ours and found.state == 'live' then
    return found.number >= tonumber(args[5]) and 'duplicate' or 'gap'
  end
  -- The caller is wrong about the sides, or this is a late copy of an earlier install: it must not replace the live side.
  if found and found.state == 'live' and not older(found, live) then return 'gap' end
  -- Or a later snapshot of this owner has been installed since, on the side that is live again.
  if live and live.state == 'live' and live.epoch == epoch and tonumber(live.generation) > tonumber(args[3]) then
    return 'gap'
  end
  local stored = ours and found.number or 0
  if stored ~= tonumber(args[4]) then return 'gap' end
  if stored == 0 then redis.call('UNLINK', key) end
  write(key, args[1], owner, 'live', args[5], args[3], args, 6)
  redis.call('UNLINK', keys[1])
  return 'ok'
end

-- keys: both sides. args: epoch, owner.
local function drop(keys, args)
  local epoch, owner = tonumber(args[1]), args[2]
  local a, b = header(keys[1]), header(keys[2])
  if fenced(a, epoch, owner) or fenced(b, epoch, owner) then return 'fenced' end
  return redis.call('UNLINK', keys[1], keys[2]) == 0 and 'duplicate' or 'ok'
end

-- Returns the live side, its header and the number of its fields, the header included. An owner (epoch above 0) takes the
-- shard, and creates a missing one. keys: both sides. args: epoch, owner. Answer: side, header, fields; or 'fenced' and the
-- header of the newer owner.
local function probe(keys, args)
  local epoch, owner = tonumber(args[1]), args[2]
  local live
  for side = 1, 2 do
    local found = header(keys[side])
    if epoch > 0 and fenced(found, epoch, owner) then return { 'fenced', found.text } end
    -- The unfinished snapshot of an earlier owner is never continued.
    if found and found.state == 'new' and found.epoch < epoch then redis.call('UNLINK', keys[side]) end
    local is_candidate = found and (found.state == 'live' or not found.state)
    if is_candidate and not (live and live.found.state and found.state and older(found, live.found)) then
      live = { side = side, found = found }
    end
  end
  if not live then
    for side = 1, 2 do
      local kind = redis.call('TYPE', keys[side]).ok
      if kind ~= 'none' and kind ~= 'hash' then return { 'bad', keys[side] .. ' is a ' .. kind } end
      if kind == 'hash' and not header(keys[side]) then
        return { 'bad', keys[side] .. ' has no header that can be read' }
      end
    end
    if epoch == 0 then return { 'none', '' } end
    write(keys[1], args[1], owner, 'live', '0', '0', {}, 1)
    return { '1', redis.call('HGET', keys[1], '#'), redis.call('HLEN', keys[1]) }
  end
  local side, found = live.side, live.found
  if not found.state then
    return { 'bad', keys[side] .. ' has a header of another version: ' .. found.text }
  end
  if epoch > found.epoch or (epoch == found.epoch and owner ~= found.owner) then
    -- Generations are compared among those of one owner.
    write(keys[side], args[1], owner, 'live', found.digits, '0', {}, 1)
  end
  return { tostring(side), redis.call('HGET', keys[side], '#'), redis.call('HLEN', keys[side]) }
end

-- Takes the ownership record. keys: the record. args: owner, epoch, the beat and epoch that were read ('' if it was missing),
-- node, who, lease_ms. Answer: 'ok' and the ceiling of fences, or 'changed'.
local function take(keys, args)
  local key = keys[1]
  local seen = redis.call('HMGET', key, 'beat', 'epoch')
  if (seen[1] or '') ~= args[3] or (seen[2] or '') ~= args[4] then return { 'changed', '' } end
  redis.call('HSET', key, 'owner', args[1], 'epoch', args[2], 'node', args[5], 'who', args[6], 'lease_ms', args[7])
  redis.call('HINCRBY', key, 'beat', 1)
  return { 'ok', redis.call('HGET', key, 'fence_ceiling') or '0' }
end

-- Renews the ownership record. keys: the record. args: owner, epoch, node, who, lease_ms, ceiling, '1' to create a missing
-- record, floor.
local function renew(keys, args)
  local key, epoch = keys[1], tonumber(args[2])
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'hash' and kind ~= 'none' then
    -- A key of another type has our name: treat the record as missing.
    if args[7] ~= '1' then return 'missing' end
    redis.call('UNLINK', key)
  end
  local found = redis.call('HMGET', key, 'owner', 'epoch', 'fence_ceiling', 'fence_floor')
  if found[2] then
    local theirs = tonumber(found[2])
    if theirs > epoch or (theirs == epoch and found[1] ~= args[1]) then return 'fenced' end
  elseif args[7] ~= '1' then
    return 'missing'
  end
  redis.call('HSET', key, 'owner', args[1], 'epoch', args[2], 'node', args[3], 'who', args[4], 'lease_ms', args[5])
  if tonumber(args[6]) > tonumber(found[3] or '0') then redis.call('HSET', key, 'fence_ceiling', args[6]) end
  if tonumber(args[8]) > tonumber(found[4] or '0') then redis.call('HSET', key, 'fence_floor', args[8]) end
  redis.call('HINCRBY', key, 'beat', 1)
  return 'ok'
end

redis.register_function('LIBRARY_write_rows', write_rows)
redis.register_function('LIBRARY_write_chunk', write_chunk)
redis.register_function('LIBRARY_install', install)
-- These write very little, or free memory: a full server must not end the ownership.
redis.register_function { function_name = 'LIBRARY_drop', callback = drop, flags = { 'allow-oom' } }
redis.register_function { function_name = 'LIBRARY_probe', callback = probe, flags = { 'allow-oom' } }
redis.register_function { function_name = 'LIBRARY_take', callback = take, flags = { 'allow-oom' } }
redis.register_function { function_name = 'LIBRARY_renew', callback = renew, flags = { 'allow-oom' } }
