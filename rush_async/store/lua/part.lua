-- A process leaves by itself: its leases end at once. One that a worker still lives under, or comes in under, stays: that worker
-- could not be reported, and is found by it.
-- ARGV  ... then leases
-- answer: how many ended
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local is_used, ended = {}, {}
for place, before in pairs({ [ALIVE] = '', [PASSING] = 'in:' }) do
  for _, holder in ipairs(call('HVALS', place)) do
    local lease = string.match(holder, '^' .. before .. '([^ ]+)')
    if lease then is_used[lease] = true end
  end
end
for i = 4, #ARGV do
  if not is_used[ARGV[i]] and call('ZSCORE', LEASES, ARGV[i]) then ended[#ended + 1] = ARGV[i] end
end
end_leases(ended)
return leave(tostring(#ended))
