-- A worker of an event loop that has nothing to do stands by: the next task that is pushed is handed to it at once (see push).
-- in: it stands by from here on, or still; out: it does not any more. Each time has a number of its own, the post.
-- ARGV  ... in or out, worker, post
-- answer: W it stands by, 0 it does not: tasks are queued, it is not alive or asked to stop, or this was `out`; or T and the key
-- of the task that this post was handed, with the record behind it ('' for one that has gone on meanwhile)
local refusal, known = enter()
if refusal then return refusal end
local what, worker, post = ARGV[4], ARGV[5], ARGV[6]

local function held(key)
  local record = call('HGET', RUNNING, key)
  return record and held_end(record, packed(worker)) and record
end

if known then
  local key = string.match(known, '^T (.+)')
  return repeated(known, key and { held(key) or '' })
end

local note = call('HGET', GRANTED, worker)
if note then
  local of, key = string.match(note, '^(%S+) (.+)$')
  local record = of == post and held(key)
  -- The note stays until the next post: the worker may leave before it has heard the answer (see bye).
  if record then return leave('T ' .. key, { record }) end
  -- What an earlier post was handed has been seen, or else this one would not have begun.
  call('HDEL', GRANTED, worker)
end
local lease = what ~= 'out' and call('HGET', ALIVE, worker)
if not lease or sub(lease, -5) == ' stop' or call('HLEN', QUEUED) > 0 then
  call('HDEL', STANDBY, worker)
  return leave('0')
end
call('HSET', STANDBY, worker, CLIENT .. ' ' .. post)
return leave('W')
