-- Adds a key to a ranking, or gives it another score. The lowest score is first, so those of a ranking whose highest is best come
-- negated. The hash keeps the direction of each ranking, `min` or `max`, and what is in it is a sorted set of its own.
-- answer: the rank of the key and how many keys there are; the direction alone where the ranking has another one, nothing where
-- the network has as many rankings as it may
require('call')
if known then return repeated() end

local MOST = 1000
local ranking, direction = RANKINGS .. ':' .. NAME, call('HGET', RANKINGS, NAME)
local n = call('ZCARD', ranking) -- fails before anything is written, where another program keeps something else there
if direction and direction ~= DIRECTION then return commit({ direction }) end
if not direction then
  if call('HLEN', RANKINGS) >= MOST then return commit({}) end
  include('create')
  call('HSET', RANKINGS, NAME, DIRECTION)
end
n = n + call('ZADD', ranking, SCORE, KEY)
return commit({ call('ZRANK', ranking, KEY), n })
