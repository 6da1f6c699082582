-- Sets for how many milliseconds the network stays after it has ended; '' for ever. `commit` makes the keys expire.
-- answer: 1
require('call')
if known then return repeated() end
local is_expiring = ttl and sub(ttl, -1) == '-' and '-' or ''
if TTL ~= '' then
  include('create')
  ttl = TTL .. is_expiring
  call('HSET', META, 'ttl', ttl)
elseif ttl then
  ttl = is_expiring
  call('HDEL', META, 'ttl')
end
return commit(1)
