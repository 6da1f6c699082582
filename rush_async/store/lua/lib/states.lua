-- For scripts that move records to another state.

require('records')

-- The record cut back to what it was when it was started, its header in front.
local function as_started(record) return sub(record, 1, started_end(record)) end

-- A record for the queue; `failure` (and its nil extra) of the attempt before, or ''.
local function as_queued(record, failure)
  return as_created(record) .. (failure ~= '' and NEVER_STARTED .. failure .. '\192' or '')
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
