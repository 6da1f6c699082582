-- Keeps the loop and arguments of workers that a command will start, under the digest that the command names.
-- answer: 1
require('call')
if known then return repeated() end

include('create')
call('HSET', STARTS, ID, START)
return commit(1)
