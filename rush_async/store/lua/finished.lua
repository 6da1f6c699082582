-- For scripts that finish tasks.

-- Appends finished records. The largest that is not small is noted, so that readers can size their chunks. Those of one call are
-- told to whoever follows them where they take little; others are read.
local SMALL, MOST_TOLD = 512, 16384
local function append_finished(records)
  if #records == 0 then return end
  local largest, size, lengths = SMALL, 0, {}
  for i = 1, #records do
    local length = #records[i]
    lengths[i], size = length, size + length
    if length > largest then largest = length end
  end
  if largest > SMALL and largest > tonumber(call('HGET', META, 'largest') or 0) then
    call('HSET', META, 'largest', largest)
  end
  local n = call('RPUSH', FINISHED, unpack(records))
  if size <= MOST_TOLD then
    local head = cmsgpack.pack({ EPOCH, n - #records, unpack(lengths) })
    told = struct.pack('>H', #head) .. head .. concat(records)
  end
end
