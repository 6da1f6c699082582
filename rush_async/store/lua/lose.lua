-- Shuts a worker out and fails what it runs, a step of about a thousand running tasks a call. The first call fences it:
-- from then on none of its calls moves anything. The last step keeps its end in `workers` and reports it once.
-- ARGV  ... worker, state (lost, killed), ended (of its tasks), cursor ('0' begins), failure of the worker (msgpack)
-- answer: the next cursor, '0' when done, '' when this worker needs no clearing (it left, or another call completed it)
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local worker, state, ended, cursor, failure = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local entry = call('HGET', WORKERS, worker)
if not entry then return leave('') end
local space = string.find(entry, ' ', 1, true)
local word = sub(entry, 1, space - 1)
if call('HDEL', ALIVE, worker) == 1 or word == 'starting' then
  word = 'clearing-' .. state
  entry = word .. sub(entry, space)
  call('HSET', WORKERS, worker, entry)
  redis.pcall('SPUBLISH', CONTROL, cmsgpack.pack({ 'out', EPOCH, state, worker }))
end
if sub(word, 1, 9) ~= 'clearing-' then return leave('') end

local owner, groups, gone, failed = packed(worker), {}, {}, {}
local step = call('HSCAN', RUNNING, cursor, 'COUNT', 1000)
for i = 1, #step[2], 2 do
  local key, record = step[2][i], step[2][i + 1]
  if is_held_by(record, owner) then
    gone[#gone + 1] = key
    failed[#failed + 1], failed[#failed + 2] = key, record .. ended .. stamp
    add(groups, 'X', worker, key)
  end
end
for first = 1, #gone, 1000 do
  local last = math.min(first + 999, #gone)
  call('HDEL', RUNNING, unpack(gone, first, last))
  call('HSET', FAILED, unpack(failed, 2 * first - 1, 2 * last))
end
if step[1] == '0' then
  space = string.find(entry, ' ', 1, true)
  call('HSET', WORKERS, worker, sub(entry, 10, space - 1) .. sub(entry, space) .. failure .. stamp)
  groups[#groups + 1] = { 'L', worker }
end
return leave(step[1], groups)
