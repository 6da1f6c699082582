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

-- The record cut back to what it was when it was created, its header in front.
local function as_created(record) return sub(record, 1, created_end(record)) end

-- The last failure that a queued or running record carries, or ''.
local function last_failure(record)
  if #record == created_end(record) then return '' end
  return sub(record, started_end(record) + 1, -2)
end
