-- Keeps the loop and arguments of workers that a command will start, under the digest that the command names.
-- answer: 1
local refusal, known = begin_call()
if refusal then return refusal end
if known then return repeated(known) end

create_network(LAST_KNOWN, SEED)
call('HSET', STARTS, ID, START)
return commit(1)
