-- For scripts that grow the data: only they may make a network exist.
-- ARGV  last_known, the highest epoch that the caller ever saw; seed, that of the network's proposals, '' for none
local function create_network()
  if EPOCH == '0' then
    EPOCH = string.format('%.0f', math.max(math.floor(now * 1e6), tonumber(LAST_KNOWN) + 1))
    call('HSET', META, 'epoch', EPOCH, 'wire', WIRE, 'seq', 0)
    if SEED ~= '' then call('HSET', META, 'seed', SEED) end
  end
end
