-- For scripts that grow the data: only they may make a network exist.
-- ARGV  last_known, the highest epoch that the caller ever saw; seed, that of the network's proposals, '' for none; token
-- Makes the network exist, before anything is written. The first call is refused, and gets a token, {'TOKEN', token}; with that it
-- is made again. The network's beginning uses the token up, so that a late copy brings no network back that was reset since.
local UNUSED = 60 -- seconds that a token stays that is not used
local function create_network()
  if EPOCH ~= '0' then return nil end
  local token = call('HGET', META, 'token')
  if token ~= TOKEN then
    if not token then
      token = string.format('%.0f', now * 1e6)
      call('HSET', META, 'token', token)
      call('EXPIRE', META, UNUSED)
    end
    return { 'TOKEN', token }
  end
  EPOCH = string.format('%.0f', math.max(math.floor(now * 1e6), tonumber(LAST_KNOWN) + 1))
  call('HDEL', META, 'token')
  call('HSET', META, 'epoch', EPOCH, 'wire', WIRE, 'seq', 0)
  call('PERSIST', META)
  if SEED ~= '' then call('HSET', META, 'seed', SEED) end
end
