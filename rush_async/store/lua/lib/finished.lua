-- For scripts that finish tasks.

-- Appends finished records. The largest that is not small is noted, so that readers can size their chunks.
local SMALL = 512
local function append_finished(records)
  if #records == 0 then return end
  local largest = SMALL
  for i = 1, #records do
    if #records[i] > largest then largest = #records[i] end
  end
  if largest > SMALL and largest > tonumber(call('HGET', META, 'largest') or 0) then
    call('HSET', META, 'largest', largest)
  end
  call('RPUSH', FINISHED, unpack(records))
end
