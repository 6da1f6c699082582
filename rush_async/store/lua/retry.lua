-- Puts failed tasks at the end of the queue again; what was created, the attempts so far and the last failure stay.
-- An item is a key.
-- answer: the keys that moved
require('call')
require('records')
if known then return repeated() end

local keys = { unpack(ARGV, FIRST) }
local moved, queued, seen, stale = {}, {}, {}, {}
for i, record in ipairs(call('HMGET', FAILED, unpack(keys))) do
  local key = keys[i]
  if record and not seen[key] and is_record(record) then
    seen[key] = true
    local flags = byte(record, 2)
    if flags >= 128 then stale[#stale + 1] = key end
    moved[#moved + 1] = key
    queued[#queued + 1] = key
    local again = as_queued(record, sub(record, started_end(record) + 1, -10))
    queued[#queued + 1] = sub(record, 1, 1) .. char(flags % 128) .. sub(again, 3)
    add(TASK_QUEUED, '', key)
  end
end
for _, key in ipairs(stale) do call('LREM', QUEUE, 1, key) end
if #moved > 0 then
  call('HSET', QUEUED, unpack(queued))
  call('HDEL', FAILED, unpack(moved))
  call('RPUSH', QUEUE, unpack(moved))
end
return commit(moved)
