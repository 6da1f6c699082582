-- Takes tasks from the head of the queue for workers that are alive: each becomes running, its attempt counted. A network that
-- has stopped gives none, and none more than have a place within its stop rules.
-- An item is a worker and how many tasks it wants.
-- answer: for each worker the keys and records that it was given, key, record, ...; nil for a worker that is not alive
-- then why there were no more: 'empty', 'full', 'stopped', or 'left off' before the end of the queue, at many stale entries; for
--      a repetition 'left off', as it may have
local MOST_STALE = 1000
require('guard')
require('taking')
require('rules')
if known then
  require('taken')
  known, extra = with_records(known), { 'left off' }
  include('repeated')
end
if judge then judge.time() end

local wants, workers, total = {}, {}, 0
for at = FIRST, #ARGV, ITEM_SIZE do
  workers[#workers + 1] = ARGV[at + WORKER]
  wants[#wants + 1] = tonumber(ARGV[at + WANT])
end
include('alive')
for i, worker in ipairs(workers) do
  if alive[worker] then total = total + wants[i] end
end
local places = stop and 0 or judge and judge.places_left(call('HLEN', RUNNING), call('LLEN', FINISHED))
local is_limited = places and places < total
if is_limited then total = places end

-- Nothing is written before every record was checked. A malformed one stays in `queued`, and its entry goes.
local keys, records, n_entries, stale, seen = {}, {}, 0, 0, {}
while #keys < total and stale < MOST_STALE do
  local heads = call('LRANGE', QUEUE, n_entries, n_entries + total - #keys - 1)
  if #heads == 0 then break end
  n_entries = n_entries + #heads
  for i, record in ipairs(call('HMGET', QUEUED, unpack(heads))) do
    if record and not seen[heads[i]] and is_record(record) then
      seen[heads[i]] = true
      keys[#keys + 1], records[#records + 1] = heads[i], record
    else
      stale = stale + 1
    end
  end
end

local answer, running, next_key = {}, {}, 1
stored = {}
for i, worker in ipairs(workers) do
  answer[i], stored[i] = false, false
  if alive[worker] then
    local given, names, owner = {}, {}, packed(worker)
    while #names < wants[i] and next_key <= #keys do
      local key, record = keys[next_key], as_taken(records[next_key], owner)
      running[#running + 1], running[#running + 2] = key, record
      given[#given + 1], given[#given + 2] = key, record
      names[#names + 1] = key
      local kind = TASK_STARTED
      include('add_event')
      next_key = next_key + 1
    end
    answer[i], stored[i] = given, names
  end
end
-- Its place in `running` comes first: where another program has replaced that key, the queue stays as it is.
if #keys > 0 then
  call('HSET', RUNNING, unpack(running))
  call('HDEL', QUEUED, unpack(keys))
end
if n_entries > 0 then call('LPOP', QUEUE, n_entries) end
local why = 'empty'
if stop then
  why = 'stopped'
elseif #keys == total then
  why = is_limited and 'full' or 'empty'
elseif stale >= MOST_STALE then
  why = 'left off'
end
extra = { why }
include('commit')
