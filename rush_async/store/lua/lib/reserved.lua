-- For scripts that reserve indices, and those by which a worker leaves: the indices of proposals that are still to become tasks.
-- `reserved` keeps those of each worker, joined by blanks, and `meta` their number; `returned` those that no worker has any more.

local function set_reserved(worker, indices, n)
  if #indices > 0 then
    call('HSET', RESERVED, worker, concat(indices, ' '))
  else
    call('HDEL', RESERVED, worker)
  end
  redis.pcall('HINCRBY', META, 'reserved', n) -- fails where another program wrote something else
end

local function reserved_by(worker)
  local indices = {}
  for index in string.gmatch(call('HGET', RESERVED, worker) or '', '%d+') do indices[#indices + 1] = index end
  return indices
end

-- Takes an index out of those of a worker. Returns whether it was there.
local function take_reserved(worker, index)
  local indices = reserved_by(worker)
  for i, each in ipairs(indices) do
    if each == index then
      table.remove(indices, i)
      set_reserved(worker, indices, -1)
      return true
    end
  end
  return false
end

local function return_index(worker, index)
  call('ZADD', RETURNED, index, index)
  add(PLACES_CHANGED, worker, index)
end

-- Returns all indices of a worker that leaves.
local function return_reserved(worker)
  local indices = reserved_by(worker)
  for _, index in ipairs(indices) do return_index(worker, index) end
  if #indices > 0 then set_reserved(worker, {}, -#indices) end
end
