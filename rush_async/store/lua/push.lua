-- Creates tasks: queued, running, finished, imported (finished, and counted in no stop rule) or failed. A worker's group needs the
-- worker alive; a group with a budget takes as many as find a place (queued + running + reserved + finished < budget), none once
-- max_failed have failed. Running tasks need a place within the stop rules too (running + reserved + finished < their `finished`),
-- and a network that has not stopped.
-- A group has a target, a worker or '', a budget or '', max_failed or '', digests or '', and n; n items follow: key, header +
-- created (finished: created alone), ended or ''. `digests` are those of the points of its items, 16 bytes each: a task is created
-- only where its point is not taken by a task that is queued, running or finished, and any other item takes no place.
-- answer: for each group the number created, nil for a worker that is not alive, 'stopped' or 'full' where the stop rules allow
--         no start; with digests in place of the number for each item, up to the first without a place, 1 created, 0 its point is
--         taken; and the index of its first task
require('guard')
require('rules')
if known then
  include('repeated')
end

local answer = {}
local queue, queued, running, finished, failed, imported = {}, {}, {}, {}, {}, {}
local used, n_failed, n_running, n_finished
if judge then n_running, n_finished, n_failed = call('HLEN', RUNNING), call('LLEN', FINISHED), call('HLEN', FAILED) end
local at, workers = FIRST, {}
local points, is_taken, registered -- of groups with digests: the points asked for, which are taken, and what this call registers
while at <= #ARGV do
  if ARGV[at + WORKER] ~= '' then workers[#workers + 1] = ARGV[at + WORKER] end
  local digests = ARGV[at + DIGESTS]
  if digests ~= '' then
    points = points or {}
    for i = 1, #digests, 16 do points[#points + 1] = sub(digests, i, i + 15) end
  end
  at = at + GROUP_SIZE + ITEM_SIZE * ARGV[at + N]
end
include('alive')
if points then
  is_taken, registered = {}, {}
  for i, key in ipairs(call('HMGET', POINTS, unpack(points))) do
    is_taken[points[i]] = key and call('HEXISTS', FAILED, key) == 0
  end
end
at = FIRST
while at <= #ARGV do
  local target, worker, budget, max_failed, digests, n = unpack(ARGV, at, at + GROUP_SIZE - 1)
  n = tonumber(n)
  local first = at + GROUP_SIZE
  at = first + ITEM_SIZE * n
  local take = n
  if judge and target == 'running' then judge.time() end
  if worker ~= '' and not alive[worker] then
    answer[#answer + 1], take = false, 0
  elseif target == 'running' and stop then
    answer[#answer + 1], take = 'stopped', 0
  else
    if budget ~= '' then
      if not used then
        used = call('HLEN', QUEUED) + call('HLEN', RUNNING) + call('LLEN', FINISHED) + #queue + #running / 2 + #finished
          + tonumber(call('HGET', META, 'reserved') or 0)
      end
      take = math.max(0, math.min(n, tonumber(budget) - used))
    end
    if max_failed ~= '' then
      n_failed = n_failed or call('HLEN', FAILED)
      if n_failed >= tonumber(max_failed) then take = 0 end
    end
    local places = judge and target == 'running' and judge.places_left(n_running, n_finished)
    local is_full = places == 0 and take > 0
    if places then take = math.min(take, places) end
    answer[#answer + 1] = is_full and 'full' or take
    if digests ~= '' and take > 0 then
      local marks, places = {}, take
      take = 0
      for i = 1, n do
        local point, from, to = sub(digests, 16 * i - 15, 16 * i), first + ITEM_SIZE * (i - 1), first + ITEM_SIZE * take
        if is_taken[point] then
          marks[i] = 0
        elseif take == places then
          break
        else
          -- What is created goes to the front of the items.
          ARGV[to + KEY], ARGV[to + CREATED], ARGV[to + ENDED] = ARGV[from + KEY], ARGV[from + CREATED], ARGV[from + ENDED]
          registered[#registered + 1], registered[#registered + 2] = point, ARGV[to + KEY]
          marks[i], take, is_taken[point] = 1, take + 1, true
        end
      end
      answer[#answer] = marks
    end
  end
  local index = take > 0 and next_index or 0
  next_index = next_index + take
  answer[#answer + 1] = index
  if target == 'imported' then imported[#imported + 1] = { #finished, take } end
  local started = worker ~= '' and packed(worker) .. '\1' .. stamp
  for i = first, first + ITEM_SIZE * (take - 1), ITEM_SIZE do
    local key, created, ended = ARGV[i + KEY], ARGV[i + CREATED] .. stamp .. struct.pack('>BI4', 206, index), ARGV[i + ENDED]
    local kind
    index = index + 1
    if target == 'queued' then
      kind = TASK_QUEUED
      queue[#queue + 1] = key
      queued[#queued + 1] = key
      queued[#queued + 1] = created
    elseif target == 'running' then
      kind = TASK_STARTED
      running[#running + 1] = key
      running[#running + 1] = '\1' .. sub(created, 2) .. started
    elseif target == 'finished' or target == 'imported' then
      kind = TASK_FINISHED
      finished[#finished + 1] = created .. NEVER_STARTED .. ended .. stamp
    else
      kind = TASK_FAILED
      failed[#failed + 1] = key
      failed[#failed + 1] = created .. NEVER_STARTED .. ended .. stamp
    end
    include('add_event')
    if judge and target == 'finished' then
      n_finished = n_finished + 1
      judge.ended(n_finished, n_failed, ended)
    elseif judge and target == 'imported' then
      n_finished, judge.n_imported = n_finished + 1, judge.n_imported + 1
    elseif judge and target == 'failed' then
      n_failed = n_failed + 1
      judge.ended(n_finished, n_failed, false)
    end
  end
  if used and target ~= 'failed' then used = used + take end
  if judge and target == 'running' then n_running = n_running + take end
end
if n_parts > 0 then
  include('create')
end

if registered and #registered > 0 then call('HSET', POINTS, unpack(registered)) end
if #queue > 0 then
  call('RPUSH', QUEUE, unpack(queue)) -- an entry without a record is skipped, a record without an entry is never found
  call('HSET', QUEUED, unpack(queued))
end
if #running > 0 then call('HSET', RUNNING, unpack(running)) end
if #imported > 0 then
  require('imported')
  local n_before = call('LLEN', FINISHED)
  for _, group in ipairs(imported) do
    if group[2] > 0 then note_imported(n_before + group[1], group[2]) end
  end
end
include('append_finished')
if #failed > 0 then call('HSET', FAILED, unpack(failed)) end
include('commit')
