-- Sets attributes of a task that is queued or running, all of these or none. Its others stay as they are.
-- What the hash keeps of a task is name, value, name, value ...: msgpack str32 and bin32, so that it can be cut here.
-- An item is a name and its value.
-- answer: 'set', or why not: 'ended' where the task is neither queued nor running, 'names' or 'bytes' where it would have too
-- many, 'foreign' where another program wrote what is there
require('call')
if known then return repeated() end

local MOST_NAMES, MOST_BYTES = 1000, 1048576
if call('HEXISTS', RUNNING, KEY) + call('HEXISTS', QUEUED, KEY) == 0 then return commit('ended') end

local before, at = call('HGET', TASK_ATTRIBUTES, KEY) or '', 1
local function cut(kind)
  if at + 4 > #before or byte(before, at) ~= kind then return nil end
  local first = at + 5
  at = first + struct.unpack('>I4', before, at + 1)
  return at <= #before + 1 and sub(before, first, at - 1) or nil
end
local names, values = {}, {}
while at <= #before do
  local name, value = cut(219), cut(198)
  if not (name and value) then return commit('foreign') end
  names[#names + 1], values[name] = name, value
end
for i = FIRST, #ARGV, ITEM_SIZE do
  local name = ARGV[i + NAME]
  if not values[name] then names[#names + 1] = name end
  values[name] = ARGV[i + VALUE]
end
if #names > MOST_NAMES then return commit('names') end

local parts = {}
for i, name in ipairs(names) do
  parts[i] = '\219' .. struct.pack('>I4', #name) .. name .. '\198' .. struct.pack('>I4', #values[name]) .. values[name]
end
local after = concat(parts)
if #after > MOST_BYTES then return commit('bytes') end
call('HSET', TASK_ATTRIBUTES, KEY, after)
return commit('set')
