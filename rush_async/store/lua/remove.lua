-- Fails queued tasks: those named, or as many as `most` from the head of the queue. The entry of a named one stays in the
-- queue, stale, and is noted in its header. An item is a key; without any, the head of the queue is taken.
-- answer: the keys that moved
-- then 1 if more may follow at the head of the queue, else 0
local MOST_STALE = 1000
require('call')
require('states')
require('rules')
if known then return repeated(known, { 1 }) end

local most, is_named = tonumber(MOST), #ARGV >= FIRST
local moved, failed, seen, n_entries, stale = {}, {}, {}, 0, 0
local function fail(keys)
  for i, record in ipairs(call('HMGET', QUEUED, unpack(keys))) do
    local key = keys[i]
    if record and not seen[key] and is_record(record) then
      seen[key] = true
      moved[#moved + 1] = key
      failed[#failed + 1], failed[#failed + 2] = key, as_unstarted_failed(record, ENDED, is_named)
      add(TASK_FAILED, '', key)
    else
      stale = stale + 1
    end
  end
end

if is_named then
  fail({ unpack(ARGV, FIRST) })
else
  while #moved < most and stale < MOST_STALE do
    local heads = call('LRANGE', QUEUE, n_entries, n_entries + most - #moved - 1)
    if #heads == 0 then break end
    n_entries = n_entries + #heads
    fail(heads)
  end
end
if #moved > 0 then
  call('HSET', FAILED, unpack(failed)) -- first: nothing is lost where that key is none of ours
  call('HDEL', QUEUED, unpack(moved))
end
if n_entries > 0 then call('LPOP', QUEUE, n_entries) end
if #moved > 0 and judge then judge.ended(call('LLEN', FINISHED), call('HLEN', FAILED), false) end
return commit(moved, { n_entries > 0 and 1 or 0 })
