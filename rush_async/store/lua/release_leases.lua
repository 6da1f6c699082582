-- A process that closes its clients ends its leases at once. A lease stays while it keeps a running or starting worker alive:
-- that worker could not be reported, and is lost when the lease expires.
-- An item is a lease.
-- answer: how many leases ended
require('call')
require('workers')
if known then return repeated() end

local is_used, ended = {}, {}
for place, before in pairs({ [ALIVE] = '', [PASSING] = 'in:' }) do
  for _, value in ipairs(call('HVALS', place)) do
    local lease = string.match(value, '^' .. before .. '([^ ]+)')
    if lease then is_used[lease] = true end
  end
end
for i = FIRST, #ARGV do
  if not is_used[ARGV[i]] and call('ZSCORE', LEASES, ARGV[i]) then ended[#ended + 1] = ARGV[i] end
end
end_leases(ended)
return commit(#ended)
