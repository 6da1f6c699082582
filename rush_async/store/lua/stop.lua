-- Asks workers to stop: noted beside their lease, so that no request is lost, and told on `control`. One that is still being
-- started is told when it enters.
-- ARGV  ... then workers
-- answer: a character a worker: 1 asked, 0 neither alive nor starting
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local answer, asked = {}, {}
for i = 4, #ARGV do
  local worker = ARGV[i]
  local place, lease = ALIVE, call('HGET', ALIVE, worker)
  if not lease then place, lease = PASSING, call('HGET', PASSING, worker) end
  local is_there = lease and lease ~= 'out'
  answer[#answer + 1] = is_there and '1' or '0'
  if is_there then
    if sub(lease, -5) ~= ' stop' then call('HSET', place, worker, lease .. ' stop') end
    asked[#asked + 1] = worker
  end
end
if #asked > 0 then call('HINCRBY', META, 'asks', 1) end
tell({ 'stop', EPOCH }, asked)
return leave(concat(answer))
