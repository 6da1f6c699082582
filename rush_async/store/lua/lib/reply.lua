-- What every script begins with: where the network is, and the reply that ends each call.
-- A reply is {epoch, seq, n_queued, n_running, n_finished, n_failed, n_workers, stop, answer, ...}.
-- The server makes each function of a script anew at every call, and looks for each variable of the script that it uses: what
-- runs once is no function, and what few scripts need is a file of its own.
local call, sub, char, byte, concat = redis.call, string.sub, string.char, string.byte, table.concat
local WIRE, MESSAGE, MOST_WORDS = '1', 960, 4000
local HEADER = 6 -- attempt u8, retries left u8 (high bit: a stale entry is left in the queue), length of created u32
local NEVER_STARTED = '\192\192\192'

local position = call('HMGET', META, 'epoch', 'seq', 'stop', 'next_index')
local epoch, seq, next_index = position[1] or '0', (position[2] or 0) + 0, (position[4] or 0) + 0
-- `meta` has '' in place of a stop where there are rules that may stop the network.
local is_judged = position[3] == ''
-- Why the network has stopped (msgpack, as `meta` keeps it), or false.
local stop = not is_judged and position[3]

local function counts()
  return { call('HLEN', QUEUED), call('HLEN', RUNNING), call('LLEN', FINISHED), call('HLEN', FAILED), call('HLEN', ALIVE) }
end

local function reply(n, answer, extra)
  local result = { EPOCH, seq, n[1], n[2], n[3], n[4], n[5], stop, answer }
  for i = 1, extra and #extra or 0 do result[9 + i] = extra[i] end
  return result
end
