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
  local clients = CALLS .. ':clients'
  if not last and redis.pcall('ZADD', clients, born, CLIENT) == 1 then
    -- A client that was killed removes no answers: each new one removes those of two old ones, if there are so many.
    for _, old in ipairs(redis.pcall('ZRANGE', clients, '-inf', now - KEPT, 'BYSCORE', 'LIMIT', 0, 2)) do
      local slots = {}
      for n = 0, WINDOW - 1 do slots[n + 1] = old .. ':' .. n end
      call('HDEL', CALLS, unpack(slots))
      call('ZREM', clients, old)
    end
  end
end
include('counts')
if ttl then
  include('expire_keys')
end
if #events > 0 then
  include('publish_events')
end
include('reply_with')
