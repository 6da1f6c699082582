-- Reads the position of the network: epoch, seq, counts. Writes nothing, needs no call number.
-- answer: its wire version
local head = call('HMGET', META, 'epoch', 'seq', 'wire')
EPOCH = head[1] or '0'
return reply(tonumber(head[2] or 0), counts(), head[3] or WIRE)
