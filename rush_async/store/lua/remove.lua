-- Fails queued tasks: those named, or as many as `most` from the head of the queue. The entry of a named one stays in the
-- queue, stale, and is noted in its header.
-- ARGV  ... most, ended, then keys (none: from the head)
-- answer: the keys that moved, joined by ' '; from the head: '' when the queue is empty, ' ' when only stale entries went
local MOST_STALE = 1000
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local most, ended, named = tonumber(ARGV[4]), ARGV[5], #ARGV > 5
local moved, failed, seen, stale = {}, {}, {}, 0
local function fail(keys)
  for i, record in ipairs(call('HMGET', QUEUED, unpack(keys))) do
    local key = keys[i]
    if record and not seen[key] then
      seen[key] = true
      moved[#moved + 1] = key
      failed[#failed + 1], failed[#failed + 2] = key, as_unstarted_failed(record, ended, named)
      add('X', '', key)
    else
      stale = stale + 1
    end
  end
end

if named then
  local keys = {}
  for i = 6, #ARGV do keys[#keys + 1] = ARGV[i] end
  fail(keys)
elseif call('HLEN', QUEUED) > 0 then
  while #moved < most and stale < MOST_STALE do
    local heads = call('LPOP', QUEUE, most - #moved)
    if not heads then break end
    fail(heads)
  end
end
if #moved > 0 then
  call('HDEL', QUEUED, unpack(moved))
  call('HSET', FAILED, unpack(failed))
end
return leave(#moved == 0 and stale > 0 and ' ' or concat(moved, ' '))
