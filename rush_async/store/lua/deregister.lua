-- A worker that holds no task any more deregisters: it is not alive from here on, and its end is kept in `workers`. The process
-- that started a worker reports it in the same way if the worker never ran.
-- An item is a worker, its state (terminated, failed, killed, lost), its failure or nil (msgpack), and who reports: self or starter.
-- answer: for each worker 1 deregistered, 0 unknown or ended, 2 alive, so that only the worker itself may report
require('call')
require('reserved')
if known then return repeated() end

local answer = {}
for at = FIRST, #ARGV, ITEM_SIZE do
  local worker, state = ARGV[at + WORKER], ARGV[at + STATE]
  local entry = call('HGET', WORKERS, worker)
  local alive = call('HEXISTS', ALIVE, worker) == 1
  local space = entry and string.find(entry, ' ', 1, true)
  if alive and ARGV[at + BY] == 'starter' then
    answer[#answer + 1] = 2
  elseif space and (alive or sub(entry, 1, 9) == 'starting ') then
    answer[#answer + 1] = 1
    call('HDEL', ALIVE, worker)
    call('HDEL', PASSING, worker)
    return_reserved(worker)
    call('HSET', WORKERS, worker, state .. sub(entry, space) .. ARGV[at + FAILURE] .. stamp)
    add((state == 'lost' or state == 'killed') and WORKER_LOST or WORKER_STOPPED, worker)
  else
    answer[#answer + 1] = 0
  end
end
return commit(answer)
