-- What happened, as groups {kind, worker, key, ...} that are packed as they come: `add_event` extends the last group while kind
-- and worker are the same and it fits into one message.
local TASK_QUEUED, TASK_STARTED, TASK_FINISHED, TASK_FAILED = 'Q', 'S', 'F', 'X'
local WORKER_STARTED, WORKER_STOPPED, WORKER_LOST = 'W', 'E', 'L'
local NETWORK_STOPPED, NETWORK_RESUMED, PLACES_CHANGED = 'T', 'R', 'P'
local events, open_kind, open_worker, parts, n_parts, size = {}, nil, nil, {}, 0, 0

-- The msgpack bytes of a text, as worker ids and names of outputs are in records.
local function packed(text)
  local n = #text
  if n < 32 then return char(160 + n) .. text end
  if n < 256 then return '\217' .. char(n) .. text end
  if n < 65536 then return '\218' .. struct.pack('>I2', n) .. text end
  return '\219' .. struct.pack('>I4', n) .. text
end
