-- Applies one batch to one virtual shard of one layout: all of it or nothing.
--
-- KEYS  1..f          checkpoints, one for each topic partition of the batch: the applied offset (the next one to
--                     apply), and behind a space what else is known of it, which this script only stores
--       f+1           counter of batches
--       f+2           outbox: descriptions of batches by number
--       f+3, f+4      buffers: contributions on known items, on unknown ones; sorted by the newest event time
--       f+5           fencing token, which is new each time that somebody is forgotten
--       f+6           popular items; then one key for each category
--       then          checkpoints whose applied offsets the caller wants to know, `watched` of them
--       then          keys to put, as many as there are TTLs in `puts`
--       then          two for each of `windows`: the identities of a topic partition's newest window, and of the one before
--       then          `former` sets of identities as earlier versions kept them, which are only looked into
--       then          entities, as many as there are deltas
-- ARGV  1             plan, JSON: {programs, ttl, lease, categories, popular}
--       2             JSON: {expected, next, fencing, kinds, watched, published, puts, windows, former, max_batches, base, catalogue,
--                     changed, buffers}; fencing is the token that the batch was prepared under;
--                     kinds is one letter for each entity, watched a number of keys, published the numbers of batches that
--                     may leave the outbox, puts one TTL in seconds for each key to put, max_batches of a buffer; each of the
--                     windows is {moves, runs}: how many windows a topic partition moves on by, and for each run of its
--                     identities how many windows it lies ahead of the newest one so far, and how many there are; where
--                     given, base is the number of the last batch that the caller saw, catalogue what it saw of the
--                     watched offsets, changed the numbers, from 1, of the entities whose fields change, and each of the
--                     buffers {drop, scores, cut, ttl}: how many members go, the scores of new ones, the least score to stay
--       3             identities of the events, 8 bytes each, to remember, run by run
--       4             description of the batch for the outbox, behind the time (f64, unix seconds) that is put before it;
--                     empty where only checkpoints move, which makes no batch
--       5..           members to drop and then to add, buffer by buffer; values to put, empty to delete
--       then          deltas, packed as gyre_core.features.slots says; whole values where the kind is a capital letter
--
-- Answers {1, batch number, time as in the outbox, for each entity of `changed` the time (f64) of the fields that it had
-- or -inf, watched offset, ...}; or {0, checkpoint, ...} with what stands where the applied offsets are not the expected
-- ones; or {2, index, ...} with the identities, counted from 0, that were applied before; or {3} when there is a later
-- batch than `base`, the catalogue moved or a member to drop is gone; or {4, token} where the fencing token is another one. Only 1 changes anything. WRONGTYPE, with the
-- key, where a key to write is of another type than the script writes, and NOPERM where a right is missing (as far as
-- Redis, from 7 on, tells a script): Redis undoes nothing of a script that fails.
local plan, call = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local checkpoints = #call.expected

local function checkpoints_of(first, last)
  if last < first then return {} end
  local found = redis.call('MGET', unpack(KEYS, first, last))
  for i = 1, last - first + 1 do found[i] = found[i] or '0' end
  return found
end

local function offset_of(checkpoint) return string.match(checkpoint, '^%d+') end

local function offsets_of(first, last)
  local found = checkpoints_of(first, last)
  for i, each in ipairs(found) do found[i] = offset_of(each) end
  return found
end

local stored = checkpoints_of(1, checkpoints)
local as_expected = true
for i = 1, checkpoints do
  if offset_of(stored[i]) ~= call.expected[i] then as_expected = false end
end
if not as_expected then return {0, unpack(stored)} end

local fencing = redis.call('GET', KEYS[checkpoints + 5]) or ''
if fencing ~= call.fencing then return {4, fencing} end

local popular = checkpoints + 6
local watched = popular + plan.categories + 1
local puts = watched + call.watched
local windows = puts + #call.puts
local former = windows + 2 * #call.windows
local first = former + call.former

if call.base and (redis.call('GET', KEYS[checkpoints + 1]) or '0') ~= call.base then return {3} end
if call.catalogue then
  local now = offsets_of(watched, puts - 1)
  for i, seen in ipairs(call.catalogue) do
    if now[i] ~= seen then return {3} end
  end
end
local member = 5
for s, buffer in ipairs(call.buffers or {}) do
  for _ = 1, buffer.drop do
    -- What is added holds the rest of it: where somebody was taken out meanwhile, that would be there twice, and they again.
    if not redis.call('ZSCORE', KEYS[checkpoints + 2 + s], ARGV[member]) then return {3} end
    member = member + 1
  end
  member = member + #buffer.scores
end

-- Some identities, a thousand at most: the arguments of one call to Redis.
local function identities_of(first, count)
  local found = {}
  for at = first, first + count - 1 do found[#found + 1] = string.sub(ARGV[3], 8 * at - 7, 8 * at) end
  return found
end

-- A run is looked for in the windows that are its own and the one before, and stays in those that are so in the end.
local known, remembered, count = {}, {}, 0
for w, window in ipairs(call.windows) do
  local newest, before = windows + 2 * w - 2, windows + 2 * w - 1
  for _, run in ipairs(window.runs) do
    local ahead, behind, looked = run[1], window.moves - run[1], {}
    if ahead < 2 then looked[1] = KEYS[newest] end
    if ahead < 1 then looked[2] = KEYS[before] end
    for key = former, first - 1 do looked[#looked + 1] = KEYS[key] end
    for at = 1, run[2], 1000 do
      local members, found = identities_of(count + at, math.min(1000, run[2] - at + 1)), {}
      for l, key in ipairs(looked) do found[l] = redis.call('SMISMEMBER', key, unpack(members)) end
      for i = 1, #members do
        for l = 1, #looked do
          if found[l][i] == 1 then
            known[#known + 1] = count + at + i - 2
            break
          end
        end
      end
      if behind < 2 then remembered[#remembered + 1] = {behind < 1 and newest or before, members} end
    end
    count = count + run[2]
  end
end
if #known > 0 then
  table.insert(known, 1, 2)
  return known
end

local function prepare(program)
  local decayed = 0
  for _, run in ipairs(program.sums) do decayed = decayed + run[2] end
  program.windows = program.windows or {}
  local doubles, buckets = program.mins + program.maxs + #program.windows + program.fields, 0
  for _, length in ipairs(program.windows) do buckets = buckets + length end
  program.format = '<dI8' .. string.rep('d', doubles + decayed + buckets) .. string.rep('f', program.lasts)
    .. (program.pad_bytes == 4 and 'xxxx' or '')
  program.numbers = 2 + doubles + decayed + buckets + program.lasts
  program.first_window = 3 + program.mins + program.maxs
  program.first_sum = 3 + doubles
  program.fields_at = 17 + 8 * (doubles - 1)
  program.first_bucket = program.first_sum + decayed
  program.first_last = program.first_bucket + buckets
end

local function merge_sums(program, a, b, ta, tb)
  local i, t = program.first_sum, a[1]
  for _, run in ipairs(program.sums) do
    local half_life = run[1]
    local fa = ta == t and 1 or 2 ^ (-(t - ta) / half_life)
    local fb = tb == t and 1 or 2 ^ (-(t - tb) / half_life)
    for _ = 1, run[2] do
      a[i] = a[i] * fa + b[i] * fb
      i = i + 1
    end
  end
end

-- Bucket b stands at b mod length; where both sides are empty lag is NaN, where the delta is, infinite.
local function merge_windows(program, a, b)
  local at, first = program.first_window, program.first_bucket
  for _, length in ipairs(program.windows) do
    local newest = b[at]
    if newest > a[at] then
      for age = 0, math.min(newest - a[at], length) - 1 do a[first + (newest - age) % length] = 0 end
      a[at] = newest
    end
    local lag = a[at] - newest
    if lag < length then
      for age = 0, length - lag - 1 do
        local i = first + (newest - age) % length
        a[i] = a[i] + b[i]
      end
    end
    at, first = at + 1, first + length
  end
end

local function merge_fields(program, a, b)
  if program.fields == 0 then return end
  local at, first, last = program.first_sum - 1, program.first_last, program.first_last + program.lasts - 1
  -- Of one time those of the delta stored, which comes later in the log.
  if b[at] >= a[at] then
    a[at] = b[at]
    for j = first, last do a[j] = b[j] end
  end
end

local function newer(x, y, size)
  for _, k in ipairs(size == 24 and {1, 3, 2, 5, 4} or {1, 3, 2}) do
    if x[k] ~= y[k] then return y[k] > x[k] end
  end
  return false
end

-- Both rings are newest first; what the value holds after the delta is used up is copied whole.
local function merge_ring(ring, value, delta, at_value, at_delta)
  local length, size = ring[1], ring[2]
  local words = size == 24 and '<dI4I4I4I4' or '<dI4I4'
  local in_value, in_delta = struct.unpack('<I8', value, at_value), struct.unpack('<I8', delta, at_delta)
  at_value, at_delta = at_value + 8, at_delta + 8
  local out, count, i, j = {}, 0, 0, 0
  while count < length and (i < in_value or j < in_delta) do
    if j >= in_delta then
      local rest = math.min(in_value - i, length - count)
      out[#out + 1] = string.sub(value, at_value + i * size, at_value + (i + rest) * size - 1)
      count = count + rest
      break
    end
    local from_delta = i >= in_value or newer(
      {struct.unpack(words, value, at_value + i * size)}, {struct.unpack(words, delta, at_delta + j * size)}, size)
    if from_delta then
      out[#out + 1] = string.sub(delta, at_delta + j * size, at_delta + (j + 1) * size - 1)
      j = j + 1
    else
      out[#out + 1] = string.sub(value, at_value + i * size, at_value + (i + 1) * size - 1)
      i = i + 1
    end
    count = count + 1
  end
  return struct.pack('<I8', count) .. table.concat(out), at_value + in_value * size, at_delta + in_delta * size
end

-- Answers the merged value and the numbers of its fixed part.
local function merge(program, value, delta, batch)
  local b = {struct.unpack(program.format, delta)}
  if not value then
    b[2] = batch
    local fixed = struct.pack(program.format, unpack(b, 1, program.numbers))
    return fixed .. string.sub(delta, program.fixed_bytes + 1), b
  end
  local a = {struct.unpack(program.format, value)}
  local ta, tb = a[1], b[1]
  if tb > ta then a[1] = tb end
  a[2] = batch
  local i = 3
  for _ = 1, program.mins do
    if b[i] < a[i] then a[i] = b[i] end
    i = i + 1
  end
  for _ = 1, program.maxs do
    if b[i] > a[i] then a[i] = b[i] end
    i = i + 1
  end
  merge_sums(program, a, b, ta, tb)
  merge_windows(program, a, b)
  merge_fields(program, a, b)
  local parts = {struct.pack(program.format, unpack(a, 1, program.numbers))}
  local at_value, at_delta = program.fixed_bytes + 1, program.fixed_bytes + 1
  for _, ring in ipairs(program.rings) do
    parts[#parts + 1], at_value, at_delta = merge_ring(ring, value, delta, at_value, at_delta)
  end
  return table.concat(parts), a
end

-- Comparable between items at any time: a count c as of time t with half-life h has the score t / h + log2(c).
local function popularity(numbers)
  local count = numbers[plan.programs.i.first_sum + plan.popular.slot]
  if not (count > 0) then return nil end
  local score = numbers[1] / plan.popular.half_life_s + math.log(count) / math.log(2)
  return score == score and string.format('%.17g', score) or nil
end

for _, program in pairs(plan.programs) do prepare(program) end
local batch = tonumber(redis.call('GET', KEYS[checkpoints + 1]) or '0') + 1
local members = 0
for _, buffer in ipairs(call.buffers or {}) do members = members + buffer.drop + #buffer.scores end
local before_deltas = 4 + members + #call.puts

-- Everything is computed before anything is written: an error here leaves the store as it was.
local merged, ranked, changed, fields_times = {}, {}, {}, {}
for _, number in ipairs(call.changed or {}) do changed[number] = true end
local function rank(at, score, id)
  local own = ranked[at]
  if not own then
    own = {}
    ranked[at] = own
  end
  own[#own + 1], own[#own + 2] = score, id
end
for chunk = first, #KEYS, 1000 do
  local last = math.min(chunk + 999, #KEYS)
  local values = redis.call('MGET', unpack(KEYS, chunk, last))
  for key = chunk, last do
    local kind = string.sub(call.kinds, key - first + 1, key - first + 1)
    local delta, value, numbers = ARGV[before_deltas + key - first + 1], nil, nil
    if changed[key - first + 1] then
      local stored, at = values[key - chunk + 1], plan.programs[string.lower(kind)].fields_at
      fields_times[#fields_times + 1] = stored and string.sub(stored, at, at + 7) or struct.pack('<d', -math.huge)
    end
    if plan.programs[kind] then
      value, numbers = merge(plan.programs[kind], values[key - chunk + 1], delta, batch)
    else
      kind = string.lower(kind)
      value = string.sub(delta, 1, 8) .. struct.pack('<I8', batch) .. string.sub(delta, 17)
      numbers = kind == 'i' and {struct.unpack(plan.programs.i.format, value)}
    end
    merged[#merged + 1] = {KEYS[key], value, plan.ttl[kind]}
    local score = kind == 'i' and plan.popular and popularity(numbers)
    if score then
      local id = string.sub(KEYS[key], plan.popular.id_at)
      rank(popular, score, id)
      local at = plan.programs.i.first_last + (plan.popular.first_category or 0)
      for category = 1, plan.categories do
        if numbers[at + category - 1] > 0 then rank(popular + category, score, id) end
      end
    end
  end
end

local writes = {
  'SET', 'DEL', 'EXPIRE', 'ZADD', 'ZREM', 'ZREMRANGEBYSCORE', 'ZREMRANGEBYRANK', 'UNLINK', 'EXISTS', 'RENAME', 'SADD',
  'TIME', 'HDEL', 'HSET',
}
for _, name in ipairs(redis.acl_check_cmd and writes or {}) do
  if not redis.acl_check_cmd(name, KEYS[1]) then return redis.error_reply('NOPERM ' .. name .. ' is not allowed') end
end
local types = {[checkpoints + 2] = 'hash'}
for _, each in ipairs(remembered) do types[each[1]] = 'set' end
for s = 1, #(call.buffers or {}) do types[checkpoints + 2 + s] = 'zset' end
for at in pairs(ranked) do types[at] = 'zset' end
for at, wanted in pairs(types) do
  local found = redis.call('TYPE', KEYS[at]).ok
  if found ~= 'none' and found ~= wanted then
    return redis.error_reply('WRONGTYPE ' .. KEYS[at] .. ' holds a ' .. found .. ', and a ' .. wanted .. ' is to be written')
  end
end

for _, each in ipairs(merged) do redis.call('SET', each[1], each[2], 'EX', each[3]) end
local at = 5
for s, buffer in ipairs(call.buffers or {}) do
  local key = KEYS[checkpoints + 2 + s]
  for _ = 1, buffer.drop do
    redis.call('ZREM', key, ARGV[at])
    at = at + 1
  end
  for i, score in ipairs(buffer.scores) do
    redis.call('ZADD', key, score, struct.pack('<I8I4', batch, i) .. ARGV[at])
    at = at + 1
  end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. buffer.cut)
  redis.call('ZREMRANGEBYRANK', key, 0, -call.max_batches - 1)
  redis.call('EXPIRE', key, buffer.ttl)
end
for i, ttl in ipairs(call.puts) do
  local key, value = KEYS[puts + i - 1], ARGV[at]
  if value == '' then redis.call('DEL', key) else redis.call('SET', key, value, 'EX', ttl) end
  at = at + 1
end
for at, own in pairs(ranked) do
  for from = 1, #own, 4000 do redis.call('ZADD', KEYS[at], unpack(own, from, math.min(from + 3999, #own))) end
  redis.call('ZREMRANGEBYRANK', KEYS[at], 0, -plan.popular.kept - 1)
  redis.call('EXPIRE', KEYS[at], plan.ttl.i)
end
for w, window in ipairs(call.windows) do
  local newest, before = KEYS[windows + 2 * w - 2], KEYS[windows + 2 * w - 1]
  if window.moves > 0 then redis.call('UNLINK', before) end
  if window.moves > 1 then redis.call('UNLINK', newest) end
  if window.moves == 1 and redis.call('EXISTS', newest) == 1 then redis.call('RENAME', newest, before) end
end
for _, each in ipairs(remembered) do
  redis.call('SADD', KEYS[each[1]], unpack(each[2]))
  redis.call('EXPIRE', KEYS[each[1]], plan.lease)
end
for i = 1, checkpoints do redis.call('SET', KEYS[i], call.next[i], 'EX', plan.lease) end
local clock = redis.call('TIME')
local time = struct.pack('<d', tonumber(clock[1]) + tonumber(clock[2]) / 1e6)
for from = 1, #call.published, 1000 do
  redis.call('HDEL', KEYS[checkpoints + 2], unpack(call.published, from, math.min(from + 999, #call.published)))
end
if ARGV[4] == '' then
  batch = batch - 1
else
  redis.call('SET', KEYS[checkpoints + 1], batch, 'EX', plan.lease)
  redis.call('HSET', KEYS[checkpoints + 2], batch, time .. ARGV[4])
end
redis.call('EXPIRE', KEYS[checkpoints + 2], plan.lease)
return {1, batch, time, table.concat(fields_times), unpack(offsets_of(watched, puts - 1))}
