-- Stops the network by hand; `why` is '' where only its time is to be judged.
-- answer: the seconds until its time is up, '' where it has no such rule or has stopped
local refusal, known = begin_call()
if refusal then return refusal end
if known then return repeated(known) end
if WHY ~= '' and not stop then create_network(LAST_KNOWN, SEED) end
local judge = rules_of(add, close_group, packed, events, WHY ~= '' and not stop and not is_judged and {})
if judge then judge.time() end
if WHY ~= '' and not stop then judge.stop('manual', WHY) end
local left = judge and judge.seconds_left()
return commit(left and string.format('%.6f', left) or '')
