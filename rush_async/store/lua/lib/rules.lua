-- For scripts that start or end tasks: `judge`, nil where the network has no rules, or has stopped.
local rules = is_judged and cmsgpack.unpack(call('HGET', META, 'rules'))
require('judge')
