-- Fails queued tasks: those named, or as many as `most` from the head of the queue. The entry of a named one stays in the
-- queue, stale, and is noted in its header.
-- ARGV  ... most, ended, then keys (none: from the head)
-- answer: the keys that moved, joined by ' '
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local ended, named = ARGV[5], #ARGV > 5
local keys = {}
if named then
  for i = 6, #ARGV do keys[#keys + 1] = ARGV[i] end
elseif call('HLEN', QUEUED) > 0 then
  keys = call('LPOP', QUEUE, ARGV[4]) or {}
end
local moved, failed, groups, seen = {}, {}, {}, {}
local records = #keys > 0 and call('HMGET', QUEUED, unpack(keys)) or {}
for i, key in ipairs(keys) do
  local record = records[i]
  if record and not seen[key] then
    seen[key] = true
    if named then record = sub(record, 1, 1) .. string.char(string.byte(record, 2) % 128 + 128) .. sub(record, 3) end
    moved[#moved + 1] = key
    failed[#failed + 1], failed[#failed + 2] = key, record .. NEVER_STARTED .. ended .. stamp
    add(groups, 'X', '', key)
  end
end
if #moved > 0 then
  call('HDEL', QUEUED, unpack(moved))
  call('HSET', FAILED, unpack(failed))
end
return leave(concat(moved, ' '), groups)
