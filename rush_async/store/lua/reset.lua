-- Deletes every task of the network and its shared state, and its workers too unless they stay. The epoch rises, so that every call on its way here is
-- refused, and every client begins anew.
-- ARGV  ... what: 'all' or 'tasks'
-- answer: the next epoch
require('reply')
if epoch ~= EPOCH then return { 'EPOCH', epoch, call('HGET', META, 'wire') or WIRE } end
require('time')
local next_epoch = string.format('%.0f', math.max(math.floor(now * 1e6), tonumber(EPOCH) + 1))
-- Whatever another program keeps in its place, what is ours is deleted: an error has no names.
for _, name in ipairs(redis.pcall('HKEYS', RANKINGS)) do call('UNLINK', RANKINGS .. ':' .. name) end
call('UNLINK', QUEUE, QUEUED, RUNNING, FINISHED, FAILED, CALLS, CALLS .. ':clients', ATTRIBUTES, CLAIMS, RANKINGS, REPORTS, RESERVED,
  RETURNED, POINTS, TASK_ATTRIBUTES, IMPORTED_FAILED)
local workers_stay = 1
if WHAT == 'all' then
  call('UNLINK', META, ALIVE, WORKERS, PASSING, LEASES, PROCESSES, LOG, STARTS)
  workers_stay = 0
elseif EPOCH ~= '0' then
  call('HSET', META, 'epoch', next_epoch, 'seq', 0)
  call('HDEL', META, 'largest', 'next_index', 'stop', 'rules', 'reports', 'reserved', 'archive',
    'imported', 'imported_at', 'imported_failed')
end
local message = cmsgpack.pack({ 'reset', next_epoch, now, workers_stay })
redis.pcall('SPUBLISH', EVENTS, message)
redis.pcall('SPUBLISH', CONTROL, message)
redis.pcall('SPUBLISH', REPORT_EVENTS, message)
EPOCH = (workers_stay == 1 and EPOCH ~= '0') and next_epoch or '0'
seq, stop = 0, false
return reply(counts(), next_epoch)
