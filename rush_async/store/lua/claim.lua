-- Claims a name: the first value that it gets stays. Stored is 1 or 0, so a repetition does not have the value that another won.
-- answer: 1 won, -1 the network has as many claims as it may, else the value that the name has, 0 in a repetition
require('call')
if known then return repeated() end

local MOST = 10000
local value = call('HGET', CLAIMS, NAME)
if value then return commit(value, nil, 0) end
if call('HLEN', CLAIMS) >= MOST then return commit(-1) end
include('create')
call('HSET', CLAIMS, NAME, VALUE)
return commit(1)
