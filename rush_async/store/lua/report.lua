-- Appends reports of running tasks to the stream, for the workers that hold them. No task moves.
-- An item is key, worker, step and values (msgpack), and how many reports the stream keeps at least.
-- answer: for each item 1 appended, 0 not held by that worker, nil the worker is not alive
require('guard')
require('held')
if known then
  include('repeated')
end

local keys, workers = {}, {}
for at = FIRST, #ARGV, ITEM_SIZE do keys[#keys + 1], workers[#workers + 1] = ARGV[at + KEY], ARGV[at + WORKER] end
local records = call('HMGET', RUNNING, unpack(keys))
include('alive')

-- Nothing is written before every item was checked.
local answer, taken = {}, {}
for n = 1, #keys do
  local record = records[n]
  if not alive[workers[n]] then
    answer[n] = false
  elseif record and held_end(record, packed(workers[n])) then
    answer[n] = 1
    taken[#taken + 1] = n
  else
    answer[n] = 0
  end
end
if #taken > 0 then
  local number = call('HINCRBY', META, 'reports', #taken) - #taken
  local messages = {}
  for i, n in ipairs(taken) do
    local at = FIRST + ITEM_SIZE * (n - 1)
    local values = ARGV[at + VALUES]
    -- The attempt is the first byte of the record, and below 128.
    local head = '\151' .. cmsgpack.pack(number + i) .. packed(keys[n]) .. packed(workers[n]) .. sub(records[n], 1, 1)
      .. ARGV[at + STEP] .. stamp
    if i < #taken then
      call('XADD', REPORTS, '*', 'r', head .. values)
    else
      call('XADD', REPORTS, 'MAXLEN', '~', ARGV[at + MOST], '*', 'r', head .. values)
    end
    messages[i] = head .. (#values > MESSAGE and '\192' or values)
  end

  local last = 0
  while last < #messages do
    local first, length = last + 1, 0
    repeat
      last = last + 1
      length = length + #messages[last]
    until last == #messages or length + #messages[last + 1] > MESSAGE
    local head = '\220' .. struct.pack('>H', last - first + 2) .. packed(EPOCH)
    redis.pcall('SPUBLISH', REPORT_EVENTS, head .. concat(messages, '', first, last))
  end
end
include('commit')
