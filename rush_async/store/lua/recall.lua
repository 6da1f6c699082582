-- Reads the answer to a call that may have been executed, and that the server refuses to repeat. Writes nothing, so that a server
-- lets it pass that refuses all writes. For a pop, an item is a worker.
-- answer: the stored answer, nil where the call was not executed
-- then that a call which goes through the queue may have left off before its end: 'left off' for a pop, else 1
require('guard')
require('taken')
include('recalled')
