-- Asks workers to stop: noted beside their lease, so that no request is lost, and told on `control`.
-- ARGV  ... then workers
-- answer: a character a worker: 1 asked, 0 not alive
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local answer, asked = {}, {}
for i = 4, #ARGV do
  local lease = call('HGET', ALIVE, ARGV[i])
  answer[#answer + 1] = lease and '1' or '0'
  if lease then
    if sub(lease, -5) ~= ' stop' then call('HSET', ALIVE, ARGV[i], lease .. ' stop') end
    asked[#asked + 1] = ARGV[i]
  end
end
for first = 1, #asked, 15 do
  redis.pcall('SPUBLISH', CONTROL, cmsgpack.pack({ 'stop', EPOCH, unpack(asked, first, math.min(first + 14, #asked)) }))
end
return leave(concat(answer))
