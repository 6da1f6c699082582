-- Ends running tasks for the workers that hold them: finished (F), failed (X), or given back (B): a task that a worker took
-- but never saw returns to the head of the queue as if it had not been taken.
-- ARGV  ... then items: op, key, worker, ended ('' for B)
-- answer: a character an item: 1 moved, 0 not held by that worker, L the worker is not alive
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local keys, owners = {}, {}
for i = 4, #ARGV, 4 do keys[#keys + 1] = ARGV[i + 1] end
local records = call('HMGET', RUNNING, unpack(keys))

local answer, groups, gone = {}, {}, {}
local finished, failed, queued, head = {}, {}, {}, {}
local seen = {}
for n, key in ipairs(keys) do
  local at = 4 * n
  local op, worker, ended, record = ARGV[at], ARGV[at + 2], ARGV[at + 3], records[n]
  if owners[worker] == nil then owners[worker] = call('HGET', ALIVE, worker) and packed(worker) end
  if not owners[worker] then
    answer[n] = 'L'
  elseif not record or seen[key] or not is_held_by(record, owners[worker]) then
    answer[n] = '0'
  else
    answer[n], seen[key] = '1', true
    gone[#gone + 1] = key
    if op == 'F' then
      finished[#finished + 1] = sub(as_started(record), HEADER + 1) .. ended .. stamp
    elseif op == 'X' then
      failed[#failed + 1], failed[#failed + 2] = key, as_started(record) .. ended .. stamp
    else
      local attempt = string.char(string.byte(record) - 1)
      queued[#queued + 1], queued[#queued + 2] = key, attempt .. sub(as_queued(record, last_failure(record)), 2)
      head[#head + 1] = key
    end
    add(groups, op == 'B' and 'Q' or op, worker, key)
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
return leave(concat(answer), groups)
