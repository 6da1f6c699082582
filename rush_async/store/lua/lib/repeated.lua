-- Answers a repetition with what the first call answered, `known`, and `extra`.
-- The slot is written again, because a client that wants replicas to have it waits for the last write of its own connection.
call('HSET', CALLS, slot, last)
local answer = known
include('counts')
include('reply_with')
