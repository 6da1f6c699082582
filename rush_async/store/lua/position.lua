-- Reads the position of the network: epoch, seq, counts, and why it has stopped. Writes nothing, needs no call number.
-- answer: its wire version; then the seed of its proposals, '' for none
local head = call('HMGET', META, 'epoch', 'seq', 'wire', 'stop', 'seed')
EPOCH = head[1] or '0'
take_stop(head[4])
return reply(tonumber(head[2] or 0), counts(), head[3] or WIRE, { head[5] or '' })
