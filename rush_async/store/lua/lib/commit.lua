-- Ends a call that was executed: raises seq by the number of groups, stores `answer` (where there is one, `stored`), publishes,
-- and replies `answer` and `extra`.
include('close_group')
if EPOCH ~= '0' then
  seq = seq + #events
  if next_index > n_indices then
    call('HSET', META, 'seq', seq, 'next_index', next_index)
  elseif #events > 0 then
    call('HSET', META, 'seq', seq)
  end
  call('HSET', CALLS, slot, NUMBER .. ' ' .. cmsgpack.pack(stored or answer))
end
include('counts')
if ttl then
  include('expire_keys')
end
if #events > 0 then
  include('publish_events')
end
include('reply_with')
