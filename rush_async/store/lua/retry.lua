-- Puts failed tasks at the end of the queue again; what was created, the attempts so far and the last failure stay.
-- The first stale entry of one that was taken by name or cancelled is looked for in the queue, from its head: a call leaves off
-- after some of that.
-- An item is a key.
-- answer: the number of keys that were looked at, then the keys that moved
local MOST_SEARCHED = 500000 -- entries of the queue, about 7 ms
require('call')
require('states')
require('failed')
if known then return repeated() end

local keys = { unpack(ARGV, FIRST) }
local moved, queued, seen, stale = {}, {}, {}, {}
local most_stale, n_looked_at = math.max(1, math.floor(MOST_SEARCHED / (call('LLEN', QUEUE) + 1))), #keys
for i, record in ipairs(call('HMGET', FAILED, unpack(keys))) do
  local key = keys[i]
  if record and not seen[key] and is_record(record) then
    local flags = byte(record, 2)
    if flags >= 128 then
      if #stale == most_stale then
        n_looked_at = i - 1
        break
      end
      stale[#stale + 1] = key
    end
    seen[key] = true
    moved[#moved + 1] = key
    queued[#queued + 1] = key
    local again = as_queued(record, sub(record, started_end(record) + 1, -10))
    queued[#queued + 1] = sub(record, 1, 1) .. char(flags % 128) .. sub(again, 3)
    add(TASK_QUEUED, '', key)
  end
end
for _, key in ipairs(stale) do call('LREM', QUEUE, 1, key) end
if #moved > 0 then
  leave_imported(moved) -- first: nothing has moved where that key is none of ours
  call('RPUSH', QUEUE, unpack(moved))
  call('HSET', QUEUED, unpack(queued))
  call('HDEL', FAILED, unpack(moved))
end
return commit({ n_looked_at, unpack(moved) })
