-- Registers workers. starting: a manager is starting them. running: they are here, may pop, finish and fail.
-- A worker's entry in `workers` is a word and msgpack values: state, info, registered at, number or nil, (once it is shut out or ended) failure
-- or nil, (once it ended) ended at. `passing` keeps those on their way: 'in:' and the lease of who starts them, or 'out'.
-- A shared worker is running without a lease: it has no process of its own, and any process may join it under its id.
-- An item is a state, lease ('' for none), its period, its expiry (seconds), worker, info.
-- answer: for each worker 1 registered or joined, 2 registered and asked to stop already, 0 refused: that id is or was in use; and its
--         number in the order of registering as running
require('call')
require('workers')
if known then return repeated() end

for at = FIRST, #ARGV, ITEM_SIZE do
  local period, expire = tonumber(ARGV[at + PERIOD]), tonumber(ARGV[at + EXPIRE])
  if ARGV[at + LEASE] ~= '' and not (period and expire and expire < math.huge) then
    return redis.error_reply('ERR the times of a lease must be finite numbers')
  end
end

local answer, entries, alive, starting, leases = {}, {}, {}, {}, {}
local seen, next_number = {}, tonumber(call('HGET', META, 'next_number') or 0)
for at = FIRST, #ARGV, ITEM_SIZE do
  local state, lease, period, expire, worker, info = unpack(ARGV, at, at + ITEM_SIZE - 1)
  local entry = call('HGET', WORKERS, worker)
  local joined = entry and state == 'running' and lease == '' and call('HGET', ALIVE, worker)
  if joined and (joined == '' or joined == ' stop') and #entry > 4 then
    answer[#answer + 1], answer[#answer + 2] = joined == '' and 1 or 2, struct.unpack('>I4', entry, #entry - 3)
  elseif seen[worker] or (entry and (state == 'starting' or sub(entry, 1, 9) ~= 'starting ')) then
    answer[#answer + 1], answer[#answer + 2] = 0, 0
  else
    seen[worker] = true
    local stop = entry and sub(call('HGET', PASSING, worker) or '', -5) == ' stop'
    local number = state == 'running' and next_number
    if number then next_number = number + 1 end
    answer[#answer + 1], answer[#answer + 2] = stop and 2 or 1, number or 0
    entries[#entries + 1], entries[#entries + 2] = worker, state .. ' ' .. info .. stamp .. (number and struct.pack('>BI4', 206, number) or '\192')
    if state == 'running' then
      alive[#alive + 1], alive[#alive + 2] = worker, lease .. (stop and ' stop' or '')
      add(WORKER_STARTED, worker)
    else
      starting[#starting + 1], starting[#starting + 2] = worker, 'in:' .. lease
    end
    if lease ~= '' then leases[lease] = { tonumber(period), tonumber(expire) } end
  end
end
if #entries > 0 then
  include('create')
  call('HSET', WORKERS, unpack(entries))
  call('HSET', META, 'next_number', next_number)
end
if #starting > 0 then call('HSET', PASSING, unpack(starting)) end
if #alive > 0 then
  call('HSET', ALIVE, unpack(alive))
  for i = 1, #alive, 2 do call('HDEL', PASSING, alive[i]) end
end
for lease, times in pairs(leases) do
  local period, expire = times[1], times[2]
  call('ZADD', LEASES, now + expire, lease)
  call('HSETNX', PROCESSES, lease, expire .. ' ' .. period .. ' ' .. now)
  local pace, own = tonumber(call('HGET', META, 'pace')), pace_of(expire, period)
  if not pace or own < pace then call('HSET', META, 'pace', own) end
end
return commit(answer)
