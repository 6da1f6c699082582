-- The guard of a numbered call, and its end (commit). A script that has `known` answers a repetition: see `repeated`.
-- ARGV  epoch client number ...            the epoch the caller knows, who calls, and the number of the call
-- Refused are a call with another epoch, {'EPOCH', epoch, wire}, and a late copy of one that was answered long ago, {'OLD'}.
require('reply')

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
require('events')

local n_indices = next_index
-- Ends a call that was executed: raises seq by the number of groups, stores the answer, publishes, replies. `stored` is what a
-- repetition is to find, where that is less than the answer.
local function commit(answer, extra, stored)
  close_group()
  if EPOCH ~= '0' then
    seq = seq + #events
    if next_index > n_indices then
      call('HSET', META, 'seq', seq, 'next_index', next_index)
    elseif #events > 0 then
      call('HSET', META, 'seq', seq)
    end
    call('HSET', CALLS, slot, NUMBER .. ' ' .. cmsgpack.pack(stored or answer))
  end
  local n = counts()
  if #events > 0 then publish_events(n) end
  return reply(n, answer, extra)
end

-- Answers a repetition with what the first call answered.
local function repeated(answer, extra)
  -- Written again, because a client that wants replicas to have it waits for the last write of its own connection.
  call('HSET', CALLS, slot, last)
  return reply(counts(), answer or known, extra)
end
