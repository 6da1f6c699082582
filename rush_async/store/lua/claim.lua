-- Claims a name: the first value that it gets stays. Stored is 1 or 0, and a repetition reads the value again.
-- answer: 1 won, -1 the network has as many claims as it may, else the value that the name has
local refusal, known = begin_call()
if refusal then return refusal end
local value = call('HGET', CLAIMS, NAME)
if known then return repeated(known, known == 0 and value or known) end

local MOST = 10000
if value then return commit(value, nil, 0) end
if call('HLEN', CLAIMS) >= MOST then return commit(-1) end
create_network(LAST_KNOWN)
call('HSET', CLAIMS, NAME, VALUE)
return commit(1)
