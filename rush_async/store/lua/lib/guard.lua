-- The guard of a numbered call. A script that has `known` answers a repetition, with `repeated`, and ends with `commit`.
-- ARGV  epoch client number ...            the epoch the caller knows, who calls, and the number of the call
-- Refused are a call with another epoch, {'EPOCH', epoch, wire}, a late copy of one that was answered long ago, {'OLD'}, and a call
-- of a client whose name is so old that its answers may have been removed, {'GONE', now}.
require('begin')

local WINDOW = 64
local OLDEST, KEPT = 3600, 7200 -- seconds from the time in a client's name: to its last new slot, and to the removal of its answers
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
local born = tonumber(sub(CLIENT, 1, 8), 16) or 0
if not last and now - born > OLDEST then return { 'GONE', string.format('%.0f', now) } end
require('events')

local n_indices = next_index
local extra, stored -- what the reply has behind the answer; what a repetition is to find, where that is less than the answer
