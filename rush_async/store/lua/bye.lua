-- A worker leaves by itself, holding nothing any more: it is not alive from here on, its end is kept in `workers`. A worker
-- that never came to run is reported in the same way by who started it.
-- ARGV  ... then workers: id, state (terminated, failed, killed, lost), failure or nil (msgpack), who says so: self or starter
-- answer: a character a worker: 1 left, 0 was not there, 2 is alive, so that only itself may say so
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local answer = {}
for i = 4, #ARGV, 4 do
  local worker, state = ARGV[i], ARGV[i + 1]
  local entry = call('HGET', WORKERS, worker)
  local alive = call('HEXISTS', ALIVE, worker) == 1
  if alive and ARGV[i + 3] == 'starter' then
    answer[#answer + 1] = '2'
  elseif entry and (alive or sub(entry, 1, 9) == 'starting ') then
    answer[#answer + 1] = '1'
    bury(worker)
    call('HDEL', PASSING, worker)
    local space = string.find(entry, ' ', 1, true)
    call('HSET', WORKERS, worker, state .. sub(entry, space) .. ARGV[i + 2] .. stamp)
    add((state == 'lost' or state == 'killed') and 'L' or 'E', worker)
  else
    answer[#answer + 1] = '0'
  end
end
return leave(concat(answer))
