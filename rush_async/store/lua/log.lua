-- Appends what workers logged. Nothing is kept of a network that was reset meanwhile.
-- ARGV  epoch '' 0, most, then records (msgpack)
-- answer: how many were appended
local epoch = call('HGET', META, 'epoch') or '0'
if epoch ~= EPOCH or epoch == '0' then return { 'EPOCH', epoch, call('HGET', META, 'wire') or WIRE } end
for i = 5, #ARGV do call('XADD', LOG, 'MAXLEN', '~', ARGV[4], '*', 'r', ARGV[i]) end
return reply(tonumber(call('HGET', META, 'seq')), counts(), tostring(#ARGV - 4))
