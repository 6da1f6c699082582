-- Reads the answer to a call that may have been executed, and that the server refuses to repeat. Writes nothing, so that a full
-- server lets it pass. For a pop, an item is a worker.
-- answer: the stored answer, nil where the call was not executed
-- then 1: a call that goes through the queue may have left off before its end
local refusal, known = begin_call()
if refusal then return refusal end
local answer = known or false
if known and #ARGV >= FIRST then answer = with_records(known) end
return reply(tonumber(call('HGET', META, 'seq') or 0), counts(), answer, { 1 })
