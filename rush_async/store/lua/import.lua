-- Takes in a part of an export, all of it in one step: tasks whose keys the network does not have, and what is kept under names
-- that it does not have. What is there stays as it is, so that the same part again changes nothing.
-- A network that never had a task takes the export over: indices of tasks stay, and so do the numbers that come next. Any other
-- gives the tasks new indices.
-- ARGV  ... archive (the id of the export), next_index and next_number (those of the exported network), indices (joined by blanks:
--       those that were reserved and are no task), n_read: how many finished tasks the caller has looked at, for their keys
-- An item is a place, a name, data and detail:
--   finished, queued, failed: key, record, where *created* ends in the record, '' where indices stay
--   attributes, claims, task_attributes, points: name, value, ''
--   ranking: its direction, a blank and its name; a key; its score
--   reports, log: the id of the entry in the stream; what it holds; of a report its number
-- answer: 'behind' where many tasks have finished since that the caller has to look at; else 'kept' or 'new', for the indices; how
--         many tasks have finished now; and for each item 1 added, 0 it was there
local MOST_READ = 1000
require('call')
require('imported')
if known then return repeated() end

-- The key that a record begins with; nil where another program wrote it.
local function key_of(record)
  local first = byte(record, 1) or 0
  if first >= 160 and first < 192 then return sub(record, 2, first - 159) end
  local size = first == 217 and 1 or first == 218 and 2 or first == 219 and 4
  if not size or #record < size + 1 then return nil end
  local length = struct.unpack(size == 1 and 'B' or size == 2 and '>I2' or '>I4', record, 2)
  return sub(record, size + 2, size + 1 + length)
end

local n_finished, n_read = call('LLEN', FINISHED), tonumber(N_READ)
if n_finished < n_read or n_finished > n_read + MOST_READ then return commit({ 'behind' }) end
local is_there = {}
for _, record in ipairs(call('LRANGE', FINISHED, n_read, -1)) do
  local key = key_of(record)
  if key then is_there[key] = true end
end

local hashes = { attributes = ATTRIBUTES, claims = CLAIMS, task_attributes = TASK_ATTRIBUTES, points = POINTS }
local streams = { reports = REPORTS, log = LOG }
-- Nothing is written where another program keeps something else in the place of a key.
for _, key in ipairs({ QUEUED, RUNNING, FAILED, RANKINGS, ATTRIBUTES, CLAIMS, TASK_ATTRIBUTES, POINTS }) do call('HLEN', key) end
call('LLEN', QUEUE)
call('ZCARD', RETURNED)
call('SCARD', IMPORTED_FAILED)
for _, key in pairs(streams) do call('XLEN', key) end
for at = FIRST, #ARGV, ITEM_SIZE do
  if ARGV[at + PLACE] == 'ranking' then call('ZCARD', RANKINGS .. ':' .. string.match(ARGV[at + NAME], '^%S+ (.*)$')) end
end

include('create')
local held = call('HGET', META, 'archive')
if not held and next_index == 0 then
  held, next_index = ARCHIVE, tonumber(NEXT_INDEX)
  local number = math.max(tonumber(call('HGET', META, 'next_number') or 0), tonumber(NEXT_NUMBER))
  call('HSET', META, 'archive', ARCHIVE, 'next_number', string.format('%d', number))
  for index in string.gmatch(INDICES, '%d+') do call('ZADD', RETURNED, index, index) end
end

local answer, finished, queue, queued, failed, failed_keys = { held == ARCHIVE and 'kept' or 'new', 0 }, {}, {}, {}, {}, {}
local function is_task(key)
  if is_there[key] then return true end
  is_there[key] = true
  return call('HEXISTS', QUEUED, key) + call('HEXISTS', RUNNING, key) + call('HEXISTS', FAILED, key) > 0
end
for at = FIRST, #ARGV, ITEM_SIZE do
  local place, name, data, detail = unpack(ARGV, at, at + ITEM_SIZE - 1)
  local n = 0
  if hashes[place] then
    n = call('HSETNX', hashes[place], name, data)
  elseif streams[place] then
    local added = redis.pcall('XADD', streams[place], name, 'r', data) -- an error where the stream has that id or a later one
    n = type(added) == 'string' and 1 or 0
    if n == 1 and place == 'reports' and tonumber(detail) > tonumber(call('HGET', META, 'reports') or 0) then
      call('HSET', META, 'reports', detail)
    end
  elseif place == 'ranking' then
    local direction, ranking = string.match(name, '^(%S+) (.*)$')
    call('HSETNX', RANKINGS, ranking, direction)
    if call('HGET', RANKINGS, ranking) == direction then n = call('ZADD', RANKINGS .. ':' .. ranking, 'NX', detail, data) end
  elseif not is_task(name) then
    n = 1
    if detail ~= '' then
      data = sub(data, 1, detail - 5) .. struct.pack('>BI4', 206, next_index) .. sub(data, detail + 1)
      next_index = next_index + 1
    end
    if place == 'finished' then
      finished[#finished + 1] = data
      add(TASK_FINISHED, '', name)
    elseif place == 'queued' then
      queue[#queue + 1], queued[#queued + 1], queued[#queued + 2] = name, name, data
      add(TASK_QUEUED, '', name)
    else
      failed_keys[#failed_keys + 1], failed[#failed + 1], failed[#failed + 2] = name, name, data
      add(TASK_FAILED, '', name)
    end
  end
  answer[#answer + 1] = n
end

include('append_finished')
if #finished > 0 then note_imported(n_finished, #finished) end
if #queue > 0 then
  call('HSET', QUEUED, unpack(queued))
  call('RPUSH', QUEUE, unpack(queue))
end
if #failed > 0 then
  call('HSET', FAILED, unpack(failed))
  call('SADD', IMPORTED_FAILED, unpack(failed_keys))
  call('HINCRBY', META, 'imported_failed', #failed_keys)
end
answer[2] = n_finished + #finished
return commit(answer)
