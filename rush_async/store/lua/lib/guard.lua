-- The guard of a numbered call. A script that has `known` answers a repetition, with `repeated`, and ends with `commit`.
-- ARGV  epoch client number ...            the epoch the caller knows, who calls, and the number of the call
-- Refused are a call with another epoch, {'EPOCH', epoch, wire}, a late copy of one that was answered long ago, {'OLD'}, and a call
-- of a client whose name is so old that its answers may have been removed, {'GONE', now}.
require('begin')

local WINDOW = 64
local slot, known = CLIENT .. ':' .. (tonumber(NUMBER) % WINDOW), nil
local last = call('HGET', CALLS, slot)
local number = last and string.match(last, '^%S+')
if epoch ~= EPOCH then
  -- The call that created this network knew of no epoch, and may come again.
  if EPOCH ~= '0' or number ~= NUMBER then return { 'EPOCH', epoch, call('HGET', META, 'wire') or WIRE } end
  EPOCH = epoch
end
if number == NUMBER then
  known = cmsgpack.unpack(sub(last, #number + 2))
elseif number and tonumber(number) > tonumber(NUMBER) then
  return { 'OLD' }
end
require('time')
if not last then
  local OLDEST, KEPT = 3600, 7200 -- seconds from the time in a client's name: to its last new slot, to the removal of its answers
  local born, clients = tonumber(sub(CLIENT, 1, 8), 16) or 0, CALLS .. ':clients'
  if now - born > OLDEST then return { 'GONE', string.format('%.0f', now) } end
  if epoch ~= '0' and redis.pcall('ZADD', clients, born, CLIENT) == 1 then
    -- A client that was killed removes no answers: each new one removes those of two old ones, if there are so many.
    for _, old in ipairs(redis.pcall('ZRANGE', clients, '-inf', now - KEPT, 'BYSCORE', 'LIMIT', 0, 2)) do
      local slots = {}
      for n = 0, WINDOW - 1 do slots[n + 1] = old .. ':' .. n end
      call('HDEL', CALLS, unpack(slots))
      call('ZREM', clients, old)
    end
  end
end
require('events')

local n_indices = next_index
local extra, stored -- what the reply has behind the answer; what a repetition is to find, where that is less than the answer
