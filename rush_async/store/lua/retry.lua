-- Puts failed tasks at the end of the queue again; what was created, the attempts so far and the last failure stay.
-- ARGV  ... then keys
-- answer: the keys that moved, joined by ' '
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local keys = {}
for i = 4, #ARGV do keys[#keys + 1] = ARGV[i] end
local moved, queued, seen = {}, {}, {}
for i, record in ipairs(call('HMGET', FAILED, unpack(keys))) do
  local key = keys[i]
  if record and not seen[key] then
    seen[key] = true
    local flags = byte(record, 2)
    if flags >= 128 then call('LREM', QUEUE, 1, key) end
    moved[#moved + 1] = key
    queued[#queued + 1] = key
    local again = as_queued(record, sub(record, started_end(record) + 1, -10))
    queued[#queued + 1] = sub(record, 1, 1) .. char(flags % 128) .. sub(again, 3)
    add('Q', '', key)
  end
end
if #moved > 0 then
  call('HSET', QUEUED, unpack(queued))
  call('HDEL', FAILED, unpack(moved))
  call('RPUSH', QUEUE, unpack(moved))
end
return leave(concat(moved, ' '))
