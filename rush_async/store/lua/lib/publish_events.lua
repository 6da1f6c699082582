-- Publishes the groups in messages of about a KiB at most, with the counts `n`. The last thing a script does.
local last, first = 0, seq - #events
while last < #events do
  local begin, length = last + 1, 0
  repeat
    last = last + 1
    length = length + #events[last]
  until last == #events or length + #events[last + 1] > MESSAGE
  local head = '\150' .. packed(EPOCH) .. cmsgpack.pack(first + begin) .. stamp .. cmsgpack.pack(n) .. (stop or '\192')
  local groups = '\220' .. struct.pack('>H', last - begin + 1) .. concat(events, '', begin, last)
  redis.pcall('SPUBLISH', EVENTS, head .. groups)
end
