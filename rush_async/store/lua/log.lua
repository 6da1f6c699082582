-- Appends what workers logged. Nothing is kept of a network that was reset meanwhile.
-- ARGV  epoch '' 0, most; an item is a record (msgpack)
-- answer: how many were appended
require('reply')
if epoch ~= EPOCH or epoch == '0' then return { 'EPOCH', epoch, call('HGET', META, 'wire') or WIRE } end
for i = FIRST, #ARGV do call('XADD', LOG, 'MAXLEN', '~', MOST, '*', 'r', ARGV[i]) end
if ttl and sub(ttl, -1) == '-' then call('PEXPIRE', LOG, call('PTTL', META)) end -- it may have come into being just now
return reply(counts(), #ARGV - FIRST + 1)
