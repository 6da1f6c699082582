-- Ends running tasks for the workers that hold them: finished, failed, or returned: a task that a worker took but never saw
-- returns to the head of the queue as if it had not been taken.
-- An item is how it ends, key, worker, and ended ('' where it is returned).
-- answer: for each item 1 moved, 0 not held by that worker, nil the worker is not alive
require('guard')
require('held')
require('rules')
if known then
  include('repeated')
end

local keys, workers = {}, {}
for at = FIRST, #ARGV, ITEM_SIZE do keys[#keys + 1], workers[#workers + 1] = ARGV[at + KEY], ARGV[at + WORKER] end
local records = call('HMGET', RUNNING, unpack(keys))
include('alive')

local answer, gone = {}, {}
local finished, failed, queued, head = {}, {}, {}, {}
local seen = {}
local n_finished, n_failed
if judge then n_finished, n_failed = call('LLEN', FINISHED), call('HLEN', FAILED) end
for n = 1, #keys do
  local key, worker, record = keys[n], workers[n], records[n]
  local started = record and alive[worker] and not seen[key] and held_end(record, packed(worker))
  if not alive[worker] then
    answer[n] = false
  elseif not started then
    answer[n] = 0
  else
    local at = FIRST + ITEM_SIZE * (n - 1)
    local how, ended = ARGV[at + KIND], ARGV[at + ENDED]
    answer[n], seen[key] = 1, true
    gone[#gone + 1] = key
    local kind
    if how == 'finished' then
      kind = TASK_FINISHED
      finished[#finished + 1] = sub(record, HEADER + 1, started) .. ended .. stamp
    elseif how == 'failed' then
      kind = TASK_FAILED
      failed[#failed + 1], failed[#failed + 2] = key, sub(record, 1, started) .. ended .. stamp
    else
      kind = TASK_QUEUED
      -- Here, so that its functions are made for these alone.
      require('states')
      queued[#queued + 1], queued[#queued + 2] = key, as_untaken(record)
      head[#head + 1] = key
    end
    include('add_event')
    if judge then judge.ended(n_finished + #finished, n_failed + #failed / 2, how == 'finished' and ended) end
  end
end
-- A task is in its new place before it leaves the old one, and what may be written twice comes first: a key that another program
-- has replaced fails a call and loses no task. Of the queue the list comes first: an entry without a record is skipped.
if #failed > 0 then call('HSET', FAILED, unpack(failed)) end
if #head > 0 then
  local reversed = {}
  for i = #head, 1, -1 do reversed[#reversed + 1] = head[i] end
  call('LPUSH', QUEUE, unpack(reversed))
  call('HSET', QUEUED, unpack(queued))
end
include('append_finished')
if #gone > 0 then call('HDEL', RUNNING, unpack(gone)) end
include('commit')
