-- The server's time, as a number and as records hold it.
local time = call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local stamp = '\203' .. struct.pack('>d', now)
