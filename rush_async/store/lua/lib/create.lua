-- For scripts that grow the data: only they may make a network exist, before they write anything.
-- ARGV  origin, '' of a caller that knows the network, else joined by blanks: the highest epoch that it ever saw, the seed of the
--       network's proposals or nothing, and the token that it was given or nothing
-- The first call is refused, and gets a token, {'TOKEN', token}; with that it is made again. The network's beginning uses the
-- token up, so that a late copy brings no network back that was reset since.
if EPOCH == '0' then
  local UNUSED = 60 -- seconds that a token stays that is not used
  local token = call('HGET', META, 'token')
  local last_known, seed, given = string.match(ORIGIN, '^(%d+) (%d*) (.*)$')
  if token ~= given then
    if not token then
      token = string.format('%.0f', now * 1e6)
      call('HSET', META, 'token', token)
      call('EXPIRE', META, UNUSED)
    end
    return { 'TOKEN', token }
  end
  EPOCH = string.format('%.0f', math.max(math.floor(now * 1e6), tonumber(last_known) + 1))
  call('HDEL', META, 'token')
  call('HSET', META, 'epoch', EPOCH, 'wire', WIRE, 'seq', 0)
  call('PERSIST', META)
  if seed ~= '' then call('HSET', META, 'seed', seed) end
end
