-- A worker of an event loop that has nothing to do stands by: the next task that is pushed is handed to it at once (see push).
-- in: it stands by from here on; again: so it did, and may have missed what it was handed; out: it does not any more.
-- ARGV  ... in, again or out, worker
-- answer: W it stands by, 0 it does not: tasks are queued, it is not alive or asked to stop, or this was `out`; or T and the key
-- of the task that it was handed and, as far as the caller knows, has not been told of, with the record behind it ('' for one
-- that has gone on meanwhile)
local refusal, known = enter()
if refusal then return refusal end
if known then
  local key = string.match(known, '^T (.+)')
  return repeated(known, key and { call('HGET', RUNNING, key) or '' })
end

local what, worker = ARGV[4], ARGV[5]
local key = what ~= 'in' and call('HGET', GRANTED, worker)
call('HDEL', GRANTED, worker)
local record = key and call('HGET', RUNNING, key)
if record and held_end(record, packed(worker)) then return leave('T ' .. key, { record }) end
local lease = what ~= 'out' and call('HGET', ALIVE, worker)
if not lease or sub(lease, -5) == ' stop' or call('HLEN', QUEUED) > 0 then
  call('HDEL', STANDBY, worker)
  return leave('0')
end
call('HSET', STANDBY, worker, CLIENT)
return leave('W')
