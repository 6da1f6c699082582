-- Takes one queued task, wherever in the queue it is, for a worker that is alive: it becomes running, its attempt counted. Its
-- entry stays in the queue, stale, and is noted in its header. As of any start, a network that has stopped or is full gives none.
-- An item, the only one, is a worker and a key.
-- answer: an array of one: key and record, or nothing; nil for a worker that is not alive
-- then why there is none: 'empty' where it is not queued, 'full', 'stopped'; for a repetition 'left off', as it is not known
require('call')
require('taking')
require('rules')
if known then
  require('taken')
  return repeated(with_records(known), { 'left off' })
end
if judge then judge.time() end

local worker, key = ARGV[FIRST + WORKER], ARGV[FIRST + KEY]
if call('HEXISTS', ALIVE, worker) == 0 then return commit({ false }, { 'empty' }) end
if stop then return commit({ {} }, { 'stopped' }) end
local record = call('HGET', QUEUED, key)
if not (record and is_record(record)) then return commit({ {} }, { 'empty' }) end
if judge and judge.places_left(call('HLEN', RUNNING), call('LLEN', FINISHED)) == 0 then return commit({ {} }, { 'full' }) end

record = as_taken(record, packed(worker))
record = sub(record, 1, 1) .. char(byte(record, 2) % 128 + 128) .. sub(record, 3)
call('HSET', RUNNING, key, record)
call('HDEL', QUEUED, key)
add(TASK_STARTED, worker, key)
return commit({ { key, record } }, { 'empty' }, { { key } })
