-- What happened, as groups {kind, worker, key, ...} that are packed as they come: `add` extends the last group while kind and
-- worker are the same and it fits into one message.
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

local function close_group()
  if n_parts > 0 then
    local head = n_parts < 16 and char(144 + n_parts) or '\220' .. struct.pack('>H', n_parts)
    events[#events + 1] = head .. concat(parts, '', 1, n_parts)
    n_parts = 0
  end
end

local function add(kind, worker, key)
  local part = key and packed(key) or ''
  if n_parts == 0 or kind ~= open_kind or worker ~= open_worker or size + #part > MESSAGE then
    close_group()
    open_kind, open_worker, n_parts, size = kind, worker, 2, #worker + 8
    parts[1], parts[2] = '\161' .. kind, packed(worker)
  end
  if key then
    n_parts, size = n_parts + 1, size + #part
    parts[n_parts] = part
  end
end

-- Publishes the groups in messages of about a KiB at most. The last thing a script does.
local function publish_events(n)
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
end
