-- What every script begins with: where the network is.
-- At every call the server makes each function of a script anew, and each variable of the script that a function uses costs it
-- a fifth of a command that reads: what workers call for each task is no function but a text to `include`.
local call, sub, char, byte, concat = redis.call, string.sub, string.char, string.byte, table.concat
local WIRE, MESSAGE, MOST_WORDS = '1', 960, 4000
local HEADER = 6 -- attempt u8, retries left u8 (high bit: stale entries may be in the queue), length of created u32
local NEVER_STARTED = '\192\192\192'

local position = call('HMGET', META, 'epoch', 'seq', 'stop', 'next_index', 'ttl')
local epoch, seq, next_index = position[1] or '0', (position[2] or 0) + 0, (position[4] or 0) + 0
-- For how many milliseconds the network stays after it has ended, with '-' behind it while its keys expire; false without a limit.
local ttl = position[5]
-- `meta` has '' in place of a stop where there are rules that may stop the network.
local is_judged = position[3] == ''
-- Why the network has stopped (msgpack, as `meta` keeps it), or false.
local stop = not is_judged and position[3]
