-- Creates tasks: queued (Q), running (R), finished (F) or failed (X). A worker's group needs the worker alive; a group with a
-- budget takes as many as find a place (queued + running + finished < budget), none once max_failed have failed.
-- ARGV  ... last_known, then groups: target, worker or '', budget or '', max_failed or '', n; then n tasks: key, header + created
--       (F: created alone), ended or ''
-- answer: a number taken for each group, L for a worker that is not alive
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local taken = {}
local queue, queued, running, finished, failed = {}, {}, {}, {}, {}
local used, n_failed
local at, workers = 5, {}
while at <= #ARGV do
  if ARGV[at + 1] ~= '' then workers[#workers + 1] = ARGV[at + 1] end
  at = at + 5 + 3 * ARGV[at + 4]
end
local leases = leases_of(workers)
at = 5
while at <= #ARGV do
  local target, worker, budget, max_failed, n = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  local first = at + 5
  at = first + 3 * n
  local take = n
  if worker ~= '' and not leases[worker] then
    taken[#taken + 1], take = 'L', 0
  else
    if budget ~= '' then
      if not used then
        used = call('HLEN', QUEUED) + call('HLEN', RUNNING) + call('LLEN', FINISHED) + #queue + #running / 2 + #finished
      end
      take = math.max(0, math.min(n, tonumber(budget) - used))
    end
    if max_failed ~= '' then
      n_failed = n_failed or call('HLEN', FAILED)
      if n_failed >= tonumber(max_failed) then take = 0 end
    end
    taken[#taken + 1] = take
  end
  local started = worker ~= '' and packed(worker) .. '\1' .. stamp
  for i = first, first + 3 * take - 1, 3 do
    local key, created, ended = ARGV[i], ARGV[i + 1] .. stamp, ARGV[i + 2]
    if target == 'Q' then
      queue[#queue + 1] = key
      queued[#queued + 1] = key
      queued[#queued + 1] = created
    elseif target == 'R' then
      running[#running + 1] = key
      running[#running + 1] = '\1' .. sub(created, 2) .. started
    elseif target == 'F' then
      finished[#finished + 1] = created .. NEVER_STARTED .. ended .. stamp
    else
      failed[#failed + 1] = key
      failed[#failed + 1] = created .. NEVER_STARTED .. ended .. stamp
    end
    add(target == 'R' and 'S' or target, worker, key)
  end
  if used and target ~= 'X' then used = used + take end
end
if has_moved() then found(ARGV[4]) end
if #queue > 0 then
  call('HSET', QUEUED, unpack(queued))
  call('RPUSH', QUEUE, unpack(queue))
end
if #running > 0 then call('HSET', RUNNING, unpack(running)) end
append_finished(finished)
if #failed > 0 then call('HSET', FAILED, unpack(failed)) end
return leave(concat(taken, ' '))
