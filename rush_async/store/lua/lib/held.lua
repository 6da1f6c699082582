-- For scripts that serve the worker that holds a task.

-- Where *started* ends in a record that `owner` (packed) holds; nil for one that it does not.
local function held_end(record, owner)
  if #record < HEADER then return nil end
  local from = HEADER + struct.unpack('>I4', record, 3) + 1
  local behind = from + #owner
  return sub(record, from, behind - 1) == owner and behind + 9 or nil
end
