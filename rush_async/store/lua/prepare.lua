-- Keeps the loop and arguments of workers that somebody will start by a command.
-- ARGV  ... last_known, id, start (msgpack)
-- answer: 1
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

found(ARGV[4])
call('HSET', STARTS, ARGV[5], ARGV[6])
return leave('1')
