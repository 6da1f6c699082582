-- What all parts of a script use.
local call, sub, char, byte, concat = redis.call, string.sub, string.char, string.byte, table.concat
local slot, now, stamp
-- Why the network has stopped (msgpack, as `meta` keeps it), or false; whether it has rules that may stop it.
local stop, is_judged = false, false
