-- Takes tasks from the head of the queue for workers that are alive: each becomes running, its attempt counted.
-- An item is a worker and how many tasks it wants.
-- answer: for each worker the keys and records that it was given, key, record, ...; nil for a worker that is not alive
-- then 1 if it left off before the end of the queue, at many stale entries, else 0; for a repetition 1, as it may have
local MOST_STALE = 1000
local refusal, known = begin_call()
if refusal then return refusal end
if known then return repeated(known, with_records(known), { 1 }) end

local wants, workers, total = {}, {}, 0
for at = FIRST, #ARGV, ITEM_SIZE do
  workers[#workers + 1] = ARGV[at + WORKER]
  wants[#wants + 1] = tonumber(ARGV[at + WANT])
end
local alive = alive_of(workers)
for i, worker in ipairs(workers) do
  if alive[worker] then total = total + wants[i] end
end

-- Nothing is written before every record was checked. A malformed one stays in `queued`, and its entry goes.
local keys, records, n_entries, stale, seen = {}, {}, 0, 0, {}
while #keys < total and stale < MOST_STALE do
  local heads = call('LRANGE', QUEUE, n_entries, n_entries + total - #keys - 1)
  if #heads == 0 then break end
  n_entries = n_entries + #heads
  for i, record in ipairs(call('HMGET', QUEUED, unpack(heads))) do
    if record and not seen[heads[i]] and is_record(record) then
      seen[heads[i]] = true
      keys[#keys + 1], records[#records + 1] = heads[i], record
    else
      stale = stale + 1
    end
  end
end

local answer, stored, running, next_key = {}, {}, {}, 1
for i, worker in ipairs(workers) do
  answer[i], stored[i] = false, false
  if alive[worker] then
    local given, names, owner = {}, {}, packed(worker)
    while #names < wants[i] and next_key <= #keys do
      local key, record = keys[next_key], records[next_key]
      local attempt, failure = char(math.min(byte(record) + 1, 127)), last_failure(record)
      record = attempt .. sub(as_created(record), 2) .. owner .. attempt .. stamp
      if failure ~= '' then record = record .. failure .. '\192' end
      running[#running + 1], running[#running + 2] = key, record
      given[#given + 1], given[#given + 2] = key, record
      names[#names + 1] = key
      add('started', worker, key)
      next_key = next_key + 1
    end
    answer[i], stored[i] = given, names
  end
end
if n_entries > 0 then call('LPOP', QUEUE, n_entries) end
if #keys > 0 then
  call('HDEL', QUEUED, unpack(keys))
  call('HSET', RUNNING, unpack(running))
end
return commit(answer, { stale >= MOST_STALE and #keys < total and 1 or 0 }, stored)
