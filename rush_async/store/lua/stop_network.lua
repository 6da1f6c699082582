-- Stops the network by hand; `why` is '' where only its time is to be judged.
-- answer: the seconds until its time is up, '' where it has no such rule or has stopped
require('call')
if known then return repeated() end
local is_stopped = WHY ~= '' and not stop
if is_stopped then
  include('create')
end
local rules = is_judged and cmsgpack.unpack(call('HGET', META, 'rules')) or is_stopped and {}
require('judge')
if judge then judge.time() end
if is_stopped and not stop then judge.stop('manual', WHY) end
local left = judge and judge.seconds_left()
return commit(left and string.format('%.6f', left) or '')
