-- A process leaves by itself: its leases end at once. Workers that it could not report keep theirs, and are found by it.
-- ARGV  ... then leases
-- answer: how many ended
local refusal, known = enter()
if refusal then return refusal end
if known then return repeated(known) end

local n = 0
for i = 4, #ARGV do
  if call('ZSCORE', LEASES, ARGV[i]) then
    end_lease(ARGV[i])
    n = n + 1
  end
end
return leave(tostring(n))
