-- Keeps the loop and arguments of workers that a command will start, under the digest that the command names.
-- answer: 1
require('call')
require('create')
if known then return repeated() end

local refused = create_network()
if refused then return refused end
call('HSET', STARTS, ID, START)
return commit(1)
