-- Appends the records `finished`. The largest that is not small is noted, so that readers can size their chunks.
if #finished > 0 then
  local SMALL = 512
  local largest = SMALL
  for i = 1, #finished do
    if #finished[i] > largest then largest = #finished[i] end
  end
  if largest > SMALL and largest > tonumber(call('HGET', META, 'largest') or 0) then
    call('HSET', META, 'largest', largest)
  end
  call('RPUSH', FINISHED, unpack(finished))
end
