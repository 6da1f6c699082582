-- Workers come in. starting: a manager says that it is starting them. running: they are here, may pop, finish and fail.
-- A worker's entry in `workers` is a word and msgpack values: state, info, registered at, (once it is shut out or ended) failure
-- or nil, (once it ended) ended at. `passing` keeps those on their way: 'in:' and the lease of who starts them, or 'out'.
-- ARGV  ... last_known, then workers: state, lease ('' for none), its period, its expiry (seconds), id, info
-- answer: a character a worker: 1 registered, 2 registered and asked to stop already, 0 refused: that id is or was in use
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local answer, entries, alive, starting, leases = {}, {}, {}, {}, {}
local seen = {}
for i = 5, #ARGV, 6 do
  local state, lease, period, expire, worker, info = unpack(ARGV, i, i + 5)
  local entry = call('HGET', WORKERS, worker)
  if seen[worker] or (entry and (state == 'starting' or sub(entry, 1, 9) ~= 'starting ')) then
    answer[#answer + 1] = '0'
  else
    seen[worker] = true
    local stop = entry and sub(call('HGET', PASSING, worker) or '', -5) == ' stop'
    answer[#answer + 1] = stop and '2' or '1'
    entries[#entries + 1], entries[#entries + 2] = worker, state .. ' ' .. info .. stamp
    if state == 'running' then
      alive[#alive + 1], alive[#alive + 2] = worker, lease .. (stop and ' stop' or '')
      add('W', worker)
    else
      starting[#starting + 1], starting[#starting + 2] = worker, 'in:' .. lease
    end
    if lease ~= '' then leases[lease] = { period, expire } end
  end
end
if #entries > 0 then
  found(ARGV[4])
  call('HSET', WORKERS, unpack(entries))
end
if #starting > 0 then call('HSET', PASSING, unpack(starting)) end
if #alive > 0 then
  call('HSET', ALIVE, unpack(alive))
  for i = 1, #alive, 2 do call('HDEL', PASSING, alive[i]) end
end
for lease, times in pairs(leases) do
  call('ZADD', LEASES, now + tonumber(times[2]), lease)
  call('HSETNX', PROCESSES, lease, times[2] .. ' ' .. times[1] .. ' ' .. now)
  local pace, own = tonumber(call('HGET', META, 'pace')), pace_of(times[2], times[1])
  if not pace or own < pace then call('HSET', META, 'pace', own) end
end
return leave(concat(answer))
