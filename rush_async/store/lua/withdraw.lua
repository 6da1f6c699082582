-- Withdraws a call that the server refused to repeat and that was not executed: a copy of it may still be on its way. Its slot gets
-- a number between this call's and that of the next one in the slot, so that a late copy is refused as old. Arguments and answer
-- are those of `recall`.
-- answer: the stored answer, nil where the call was not executed
-- then that a call which goes through the queue may have left off before its end: 'left off' for a pop, else 1
require('guard')
require('taken')
if not known then
  if EPOCH == '0' then
    call('HDEL', META, 'token') -- without it a late copy makes no network exist
  else
    call('HSET', CALLS, slot, string.format('%.0f', NUMBER + 1))
    if ttl then
      include('counts')
      include('expire_keys')
    end
  end
end
include('recalled')
