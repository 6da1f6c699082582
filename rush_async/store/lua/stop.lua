-- Asks workers to stop: noted beside their lease, so that no request is lost, and published on `control`. One that is still being
-- started learns it when it registers. An item is a worker.
-- answer: for each worker 1 asked, 0 neither alive nor starting
require('call')
require('workers')
if known then return repeated() end

local answer, asked = {}, {}
for i = FIRST, #ARGV do
  local worker = ARGV[i]
  local place, value = ALIVE, call('HGET', ALIVE, worker)
  if not value then place, value = PASSING, call('HGET', PASSING, worker) end
  local is_there = value and value ~= 'out'
  answer[#answer + 1] = is_there and 1 or 0
  if is_there then
    if sub(value, -5) ~= ' stop' then call('HSET', place, worker, value .. ' stop') end
    asked[#asked + 1] = worker
  end
end
if #asked > 0 then raise_asks() end
publish_control({ 'stop', EPOCH }, asked)
return commit(answer)
