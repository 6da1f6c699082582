-- Fails tasks that are queued or running, whoever holds them: the holder is told on `control`, and its own end moves nothing.
-- The entry of a queued one stays in the queue, stale, and is noted in its header.
-- ARGV  ... ended, then keys
-- answer: the keys that moved, joined by ' '
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local ended, keys = ARGV[4], {}
for i = 5, #ARGV do keys[#keys + 1] = ARGV[i] end
local waiting, running = call('HMGET', QUEUED, unpack(keys)), call('HMGET', RUNNING, unpack(keys))
local moved, failed, unqueued, stopped, seen, told = {}, {}, {}, {}, {}, {}
for i, key in ipairs(keys) do
  local record = waiting[i] or running[i]
  if record and not seen[key] then
    seen[key] = true
    moved[#moved + 1] = key
    if waiting[i] then
      unqueued[#unqueued + 1] = key
      failed[#failed + 1], failed[#failed + 2] = key, as_unstarted_failed(record, ended, true)
      add('X', '', key)
    else
      local owner = owner_of(record)
      local worker = sub(owner, byte(owner) == 217 and 3 or 2)
      stopped[#stopped + 1] = key
      failed[#failed + 1], failed[#failed + 2] = key, as_started(record) .. ended .. stamp
      add('X', worker, key)
      told[worker] = told[worker] or {}
      table.insert(told[worker], key)
    end
  end
end
if #unqueued > 0 then call('HDEL', QUEUED, unpack(unqueued)) end
if #stopped > 0 then
  call('HDEL', RUNNING, unpack(stopped))
  call('HINCRBY', META, 'asks', 1)
end
if #failed > 0 then call('HSET', FAILED, unpack(failed)) end
for worker, theirs in pairs(told) do tell({ 'cancel', EPOCH, worker }, theirs) end
return leave(concat(moved, ' '))
