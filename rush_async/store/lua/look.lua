-- Reads where the network stands: epoch, seq, counts; the answer is its wire version. Moves nothing, needs no call number.
-- An empty message on `events` (subscribers skip it) shows whether this user may publish; the error text comes last.
-- ARGV  0 '' 0, probe: '1' to try publishing
local head = call('HMGET', META, 'epoch', 'seq', 'wire')
EPOCH = head[1] or '0'
local denied = ''
if ARGV[4] == '1' then
  local result = redis.pcall('SPUBLISH', EVENTS, '')
  if type(result) == 'table' and result.err then denied = result.err end
end
return reply(tonumber(head[2] or 0), counts(), head[3] or WIRE, { denied })
