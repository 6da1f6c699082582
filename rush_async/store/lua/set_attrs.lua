-- Sets attributes, all of these or none. Others stay as they are. An item is a name and its value.
-- answer: 0 set, else by how many the network would have too many attributes
require('call')
if known then return repeated() end

local MOST = 10000
local n = call('HLEN', ATTRIBUTES)
if n + (#ARGV - FIRST + 1) / ITEM_SIZE > MOST then
  for at = FIRST, #ARGV, ITEM_SIZE do
    if call('HEXISTS', ATTRIBUTES, ARGV[at + NAME]) == 0 then n = n + 1 end
  end
  if n > MOST then return commit(n - MOST) end
end
include('create')
for first = FIRST, #ARGV, MOST_WORDS do
  call('HSET', ATTRIBUTES, unpack(ARGV, first, math.min(first + MOST_WORDS - 1, #ARGV)))
end
return commit(0)
