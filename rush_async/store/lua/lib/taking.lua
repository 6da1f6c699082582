-- For scripts that take tasks from the queue.

require('records')

-- The record of a queued task as `owner` (packed) runs it, its attempt counted.
local function as_taken(record, owner)
  local attempt, failure = char(math.min(byte(record) + 1, 127)), last_failure(record)
  record = attempt .. sub(as_created(record), 2) .. owner .. attempt .. stamp
  if failure ~= '' then record = record .. failure .. '\192' end
  return record
end
