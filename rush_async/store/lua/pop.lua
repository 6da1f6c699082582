-- Takes tasks from the head of the queue for workers that are alive: each becomes running, its attempt counted.
-- ARGV  ... then groups: worker, want
-- answer: for each group the keys it was given, joined by ' ', or L for a worker that is not alive; groups joined by '|'
-- then the records of all keys in that order ('' for one that has gone on meanwhile)
local MOST_STALE = 1000
local refusal, known = enter()
if refusal then return refusal end
if known then
  -- Each group as it was given, and the records that are still its worker's.
  local records, at = {}, 4
  for given in string.gmatch(known .. '|', '([^|]*)|') do
    local owner = packed(ARGV[at])
    for key in string.gmatch(given ~= 'L' and given or '', '%S+') do
      local record = call('HGET', RUNNING, key)
      records[#records + 1] = record and held_end(record, owner) and record or ''
    end
    at = at + 2
  end
  return repeated(known, records)
end

local wants, workers, total = {}, {}, 0
for i = 4, #ARGV, 2 do
  workers[#workers + 1] = ARGV[i]
  wants[#wants + 1] = tonumber(ARGV[i + 1])
end
local leases = leases_of(workers)
for i, worker in ipairs(workers) do
  if not leases[worker] then wants[i] = -1 end
  total = total + math.max(wants[i], 0)
end

local keys, records, stale, seen = {}, {}, 0, {}
while #keys < total and stale < MOST_STALE do
  local heads = call('LPOP', QUEUE, total - #keys)
  if not heads then break end
  for i, record in ipairs(call('HMGET', QUEUED, unpack(heads))) do
    if record and not seen[heads[i]] then
      seen[heads[i]] = true
      keys[#keys + 1], records[#records + 1] = heads[i], record
    else
      stale = stale + 1
    end
  end
end

local answer, running, next_key = {}, {}, 1
for i, worker in ipairs(workers) do
  local given, owner = {}, packed(worker)
  while #given < wants[i] and next_key <= #keys do
    local key, record = keys[next_key], records[next_key]
    local attempt, failure = char(math.min(byte(record) + 1, 127)), last_failure(record)
    record = attempt .. sub(as_created(record), 2) .. owner .. attempt .. stamp
    if failure ~= '' then record = record .. failure .. '\192' end
    records[next_key] = record
    running[#running + 1], running[#running + 2] = key, record
    given[#given + 1] = key
    add('S', worker, key)
    next_key = next_key + 1
  end
  answer[i] = wants[i] < 0 and 'L' or concat(given, ' ')
end
if #keys > 0 then
  call('HDEL', QUEUED, unpack(keys))
  call('HSET', RUNNING, unpack(running))
end
return leave(concat(answer, '|'), records)
