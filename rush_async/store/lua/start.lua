-- Makes tasks of reserved indices: each is created as running, for the worker that has the index.
-- An item is a worker, an index, the digest of its point or '', key, header + created.
-- answer: for each item 1 started, 0 the worker does not have that index, 'stopped' (the index returns), 'duplicate' where a task
--         that is queued, running or finished has the point (the worker keeps the index), nil the worker is not alive
require('call')
require('reserved')
require('rules')
if known then return repeated() end
if judge then judge.time() end

local workers = {}
for at = FIRST, #ARGV, ITEM_SIZE do workers[#workers + 1] = ARGV[at + WORKER] end
include('alive')
local answer, running, points = {}, {}, {}
local function is_taken(digest)
  local key = call('HGET', POINTS, digest)
  return points[digest] or (key and call('HEXISTS', FAILED, key) == 0)
end

for i, worker in ipairs(workers) do
  local at = FIRST + ITEM_SIZE * (i - 1)
  local index, digest, key = ARGV[at + INDEX], ARGV[at + DIGEST], ARGV[at + KEY]
  if not alive[worker] then
    answer[i] = false
  elseif digest ~= '' and not stop and is_taken(digest) then
    answer[i] = 'duplicate'
  elseif not take_reserved(worker, index) then
    answer[i] = 0
  elseif stop then
    answer[i] = 'stopped'
    return_index(worker, index)
  else
    answer[i] = 1
    if digest ~= '' then
      points[digest] = true
      call('HSET', POINTS, digest, key)
    end
    local created = ARGV[at + CREATED] .. stamp .. struct.pack('>BI4', 206, tonumber(index))
    running[#running + 1], running[#running + 2] = key, '\1' .. sub(created, 2) .. packed(worker) .. '\1' .. stamp
    add(TASK_STARTED, worker, key)
  end
end
if #running > 0 then call('HSET', RUNNING, unpack(running)) end
return commit(answer)
