-- Shuts workers out and clears what they run, in steps of about a thousand running tasks a call. The first call fences the
-- workers that are alive or starting: from then on none of their calls moves anything. A task with retries left returns to the
-- head of the queue with its failure, any other fails. The last step keeps the ends in `workers` and reports each once.
-- ARGV  ... state (lost, killed), ended (of the tasks), cursor ('0' begins), failure of the workers (msgpack); an item is a worker
-- answer: the next cursor ('0': done), {workers that this call shut out}, {other workers to be cleared}, how many tasks failed and
--         how many are queued again. The next step is given both kinds of workers; without any, none needs clearing: they left,
--         or another call completed them.
require('call')
require('states')
require('workers')
require('fence')
require('rules')
if known then return repeated() end

local fenced, others, names = {}, {}, {}
for i = FIRST, #ARGV do
  local worker = ARGV[i]
  local entry = call('HGET', WORKERS, worker)
  local word = entry and string.match(entry, '^[^ ]+') or ''
  if CURSOR == '0' and (word == 'running' or word == 'starting') then
    fence(worker, entry, STATE, FAILURE)
    fenced[#fenced + 1] = worker
    names[packed(worker)] = worker
  elseif sub(word, 1, 9) == 'clearing-' and not names[packed(worker)] then
    others[#others + 1] = worker
    names[packed(worker)] = worker
  end
end
if #fenced > 0 then raise_asks() end
publish_control({ 'out', EPOCH, STATE }, fenced)
if #fenced + #others == 0 then return commit({ '0', {}, {}, 0, 0 }) end

local gone, failed, queued, head = {}, {}, {}, {}
local step = call('HSCAN', RUNNING, CURSOR, 'COUNT', 1000)
for i = 1, #step[2], 2 do
  local key, record = step[2][i], step[2][i + 1]
  local owner = is_record(record) and #record > created_end(record) and owner_of(record)
  local worker = owner and names[owner] -- a malformed record stays: it is no task of theirs
  if worker then
    gone[#gone + 1] = key
    local flags = byte(record, 2)
    local retries = flags % 128
    if retries > 0 then
      queued[#queued + 1] = key
      queued[#queued + 1] = sub(record, 1, 1) .. char(flags - 1) .. sub(as_queued(record, ENDED), 3)
      head[#head + 1] = key
      add(TASK_QUEUED, worker, key)
    else
      failed[#failed + 1], failed[#failed + 2] = key, as_started(record) .. ENDED .. stamp
      add(TASK_FAILED, worker, key)
    end
  end
end
local function each(items, most, act)
  for first = 1, #items, most do act(first, math.min(first + most - 1, #items)) end
end
-- Last they leave `running`: where another program has replaced a key, they are still found there.
each(failed, 2000, function(a, b) call('HSET', FAILED, unpack(failed, a, b)) end)
each(head, 1000, function(a, b) call('LPUSH', QUEUE, unpack(head, a, b)) end) -- an entry without a record is skipped
each(queued, 2000, function(a, b) call('HSET', QUEUED, unpack(queued, a, b)) end)
each(gone, 1000, function(a, b) call('HDEL', RUNNING, unpack(gone, a, b)) end)
if judge then judge.ended(call('LLEN', FINISHED), call('HLEN', FAILED), false) end
if step[1] == '0' then
  for _, workers in ipairs({ fenced, others }) do
    for _, worker in ipairs(workers) do
      local entry = call('HGET', WORKERS, worker)
      call('HSET', WORKERS, worker, sub(entry, 10) .. stamp)
      call('HDEL', PASSING, worker)
      add(WORKER_LOST, worker)
    end
  end
end
return commit({ step[1], fenced, others, #failed / 2, #head })
