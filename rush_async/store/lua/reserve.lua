-- Reserves the lowest index that is free for a proposal of each worker that is alive. It holds a place of budgets and stop rules,
-- until `start` makes it a task, or it returns: by `unreserve`, by a stop, or when the worker leaves.
-- An item is a worker, the seed that it knows, a budget or '', max_failed or '', and 1 where a queued task comes first, else 0.
-- answer: for each item the index; else why there is none: 'queued', 'stopped', 'full' (the places of the stop rules are taken),
--         'budget' (those of the budget are taken), 'spent' (the budget), 'seed' (the network has another); nil for a worker that
--         is not alive
-- then the seed of the network, '' for none
require('call')
require('reserved')
require('rules')
local seed = call('HGET', META, 'seed') or ''
if known then return repeated(known, { seed }) end
if judge then judge.time() end

local workers = {}
for at = FIRST, #ARGV, ITEM_SIZE do workers[#workers + 1] = ARGV[at + WORKER] end
include('alive')
include('counts')
local n_queued, n_running, n_finished, n_failed = n[1], n[2], n[3], n[4]

local function take_index(worker)
  local index = call('ZPOPMIN', RETURNED)[1]
  if not index then
    index, next_index = string.format('%d', next_index), next_index + 1
  end
  local indices = reserved_by(worker)
  indices[#indices + 1] = index
  set_reserved(worker, indices, 1)
  return tonumber(index)
end

local answer = {}
for i, worker in ipairs(workers) do
  local at = FIRST + ITEM_SIZE * (i - 1)
  local budget, max_failed = tonumber(ARGV[at + BUDGET]), tonumber(ARGV[at + MAX_FAILED])
  local taken = n_queued + n_running + n_finished + tonumber(call('HGET', META, 'reserved') or 0)
  if not alive[worker] then
    answer[i] = false
  elseif ARGV[at + SEED] ~= seed then
    answer[i] = 'seed'
  elseif stop then
    answer[i] = 'stopped'
  elseif (budget and n_finished >= budget) or (max_failed and n_failed >= max_failed) then
    answer[i] = 'spent'
  elseif n_queued > 0 and ARGV[at + QUEUED_FIRST] == '1' then
    answer[i] = 'queued'
  elseif judge and judge.places_left(n_running, n_finished) == 0 then
    answer[i] = 'full'
  elseif budget and taken >= budget then
    answer[i] = 'budget'
  else
    answer[i] = take_index(worker)
  end
end
return commit(answer, { seed })
