-- For scripts that take records apart.

-- A record is cut, never decoded. Behind *created* is *started*: nothing while the task is queued for the first time, three
-- nils where it never started, else its worker. A task that is tried again carries its last failure behind that.
local function created_end(record) return HEADER + struct.unpack('>I4', record, 3) end

local function owner_of(record)
  local from = created_end(record) + 1
  local first = byte(record, from)
  if not first or first == 192 then return nil end
  return sub(record, from, from + (first == 217 and byte(record, from + 1) + 1 or first - 160))
end

local function started_end(record)
  local owner = owner_of(record)
  return created_end(record) + (owner and #owner + 10 or #NEVER_STARTED)
end

-- Whether a stored record can be cut: from another writer it may be anything, and a script must not fail between two writes.
local function is_record(record)
  if #record < HEADER then return false end
  local created = created_end(record)
  if created > #record then return false end
  if created == #record then return true end
  local first = byte(record, created + 1)
  if first == 217 then
    if not byte(record, created + 2) then return false end
  elseif first ~= 192 and (first < 160 or first > 191) then
    return false
  end
  return started_end(record) <= #record
end

-- The record cut back to what it was when it was created, or started, its header in front.
local function as_created(record) return sub(record, 1, created_end(record)) end
local function as_started(record) return sub(record, 1, started_end(record)) end

-- A record for the queue; `failure` (and its nil extra) of the attempt before, or ''.
local function as_queued(record, failure)
  return as_created(record) .. (failure ~= '' and NEVER_STARTED .. failure .. '\192' or '')
end

-- The last failure that a queued or running record carries, or ''.
local function last_failure(record)
  if #record == created_end(record) then return '' end
  return sub(record, started_end(record) + 1, -2)
end

-- A queued record that failed without having run. `stale`: its entry stays in the queue, and is noted in the header.
local function as_unstarted_failed(record, ended, stale)
  if stale then record = sub(record, 1, 1) .. char(byte(record, 2) % 128 + 128) .. sub(record, 3) end
  return as_created(record) .. NEVER_STARTED .. ended .. stamp
end

-- A record that was taken from the queue and never seen, as it was there. It goes to the head of the queue: a stale entry behind
-- that is skipped as any other.
local function as_untaken(record)
  return char(math.max(byte(record) - 1, 0)) .. sub(as_queued(record, last_failure(record)), 2)
end
