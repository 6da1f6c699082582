-- Ends running tasks for the workers that hold them: finished (F), failed (X), or given back (B): a task that a worker took
-- but never saw returns to the head of the queue as if it had not been taken.
-- ARGV  ... then items: op, key, worker, ended ('' for B)
-- answer: a character an item: 1 moved, 0 not held by that worker, L the worker is not alive
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local keys, workers = {}, {}
for i = 4, #ARGV, 4 do keys[#keys + 1], workers[#workers + 1] = ARGV[i + 1], ARGV[i + 2] end
local records, leases = call('HMGET', RUNNING, unpack(keys)), leases_of(workers)

local answer, gone = {}, {}
local finished, failed, queued, head = {}, {}, {}, {}
local seen = {}
for n = 1, #keys do
  local key, worker, record = keys[n], workers[n], records[n]
  local ending = record and leases[worker] and not seen[key] and held_end(record, packed(worker))
  if not leases[worker] then
    answer[n] = 'L'
  elseif not ending then
    answer[n] = '0'
  else
    local op, ended = ARGV[4 * n], ARGV[4 * n + 3]
    answer[n], seen[key] = '1', true
    gone[#gone + 1] = key
    if op == 'F' then
      finished[#finished + 1] = sub(record, HEADER + 1, ending) .. ended .. stamp
    elseif op == 'X' then
      failed[#failed + 1], failed[#failed + 2] = key, sub(record, 1, ending) .. ended .. stamp
    else
      queued[#queued + 1], queued[#queued + 2] = key, as_untaken(record)
      head[#head + 1] = key
    end
    add(op == 'B' and 'Q' or op, worker, key)
  end
end
if #gone > 0 then call('HDEL', RUNNING, unpack(gone)) end
append_finished(finished)
if #failed > 0 then call('HSET', FAILED, unpack(failed)) end
if #head > 0 then
  local reversed = {}
  for i = #head, 1, -1 do reversed[#reversed + 1] = head[i] end
  call('HSET', QUEUED, unpack(queued))
  call('LPUSH', QUEUE, unpack(reversed))
end
return leave(concat(answer))
