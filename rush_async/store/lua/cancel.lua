-- Fails tasks that are queued or running, whichever worker holds them: the holder hears of it on `control`, and its own end moves
-- nothing. The entry of a queued one stays in the queue, stale, and is noted in its header. An item is a key.
-- answer: the keys that moved
require('call')
require('states')
require('workers')
require('rules')
if known then return repeated() end

local keys = { unpack(ARGV, FIRST) }
local waiting, running = call('HMGET', QUEUED, unpack(keys)), call('HMGET', RUNNING, unpack(keys))
local moved, failed, unqueued, stopped, seen, by_worker = {}, {}, {}, {}, {}, {}
for i, key in ipairs(keys) do
  local record = waiting[i] or running[i]
  if record and not seen[key] and is_record(record) then
    seen[key] = true
    local owner = not waiting[i] and owner_of(record)
    if waiting[i] then
      unqueued[#unqueued + 1] = key
      failed[#failed + 1], failed[#failed + 2] = key, as_unstarted_failed(record, ENDED, true)
      moved[#moved + 1] = key
      add(TASK_FAILED, '', key)
    elseif owner then
      local worker = sub(owner, byte(owner) == 217 and 3 or 2)
      stopped[#stopped + 1] = key
      failed[#failed + 1], failed[#failed + 2] = key, as_started(record) .. ENDED .. stamp
      moved[#moved + 1] = key
      add(TASK_FAILED, worker, key)
      by_worker[worker] = by_worker[worker] or {}
      table.insert(by_worker[worker], key)
    end
  end
end
if #failed > 0 then call('HSET', FAILED, unpack(failed)) end -- first: nothing is lost where that key is none of ours
if #unqueued > 0 then call('HDEL', QUEUED, unpack(unqueued)) end
if #stopped > 0 then
  call('HDEL', RUNNING, unpack(stopped))
  raise_asks()
end
if judge then judge.ended(call('LLEN', FINISHED), call('HLEN', FAILED), false) end
for worker, theirs in pairs(by_worker) do publish_control({ 'cancel', EPOCH, worker }, theirs) end
return commit(moved)
