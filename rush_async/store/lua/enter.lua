-- Workers come in. announced: a manager says that it is starting them. entered: they are here, may pop, finish and fail.
-- A worker's entry in `workers` is a word and msgpack values: state, info, registered at, (once it ended) failure or nil, ended at.
-- ARGV  ... last_known, then workers: state ('starting' or 'running'), lease, id, info
-- answer: a character a worker: 1 registered, 0 refused because that id is or was in use
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local answer, groups, entries, alive = {}, {}, {}, {}
for i = 5, #ARGV, 4 do
  local state, lease, worker = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local entry = call('HGET', WORKERS, worker)
  if entry and (state == 'starting' or sub(entry, 1, 9) ~= 'starting ') then
    answer[#answer + 1] = '0'
  else
    answer[#answer + 1] = '1'
    entries[#entries + 1], entries[#entries + 2] = worker, state .. ' ' .. ARGV[i + 3] .. stamp
    if state == 'running' then
      alive[#alive + 1], alive[#alive + 2] = worker, lease
      groups[#groups + 1] = { 'W', worker }
    end
  end
end
if #entries > 0 then
  found(ARGV[4])
  call('HSET', WORKERS, unpack(entries))
end
if #alive > 0 then call('HSET', ALIVE, unpack(alive)) end
return leave(concat(answer), groups)
