-- Reads the position of the network: epoch, seq, counts, and why it has stopped. Writes nothing, needs no call number.
-- answer: its wire version; then the seed of its proposals, '' for none
require('reply')
EPOCH = epoch
return reply(counts(), call('HGET', META, 'wire') or WIRE, { call('HGET', META, 'seed') or '' })
