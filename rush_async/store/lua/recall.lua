-- Reads the answer to a call that may have been executed, and that the server refuses to repeat. Writes nothing, so that a full
-- server lets it pass. For a pop, an item is a worker.
-- answer: the stored answer, nil where the call was not executed
-- then that a call which goes through the queue may have left off before its end: 'left off' for a pop, else 1
require('guard')
require('taken')
local answer, is_pop = known or false, #ARGV >= FIRST
if known and is_pop then answer = with_records(known) end
extra = { is_pop and 'left off' or 1 }
include('counts')
include('reply_with')
