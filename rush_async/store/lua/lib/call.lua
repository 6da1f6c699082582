-- What every script begins with: the guard of a numbered call (begin_call) and its end (commit).
-- ARGV  epoch client number ...            the epoch the caller knows, who calls, and the number of the call
-- A reply is {epoch, seq, n_queued, n_running, n_finished, n_failed, n_workers, stop, answer, ...}, or {'EPOCH', epoch, wire}:
-- another epoch, not executed; or {'OLD'}: a late copy of a call that was answered long ago, not executed.
local WIRE, WINDOW, MESSAGE, MOST_WORDS = '1', 64, 960, 4000
local HEADER = 6 -- attempt u8, retries left u8 (high bit: a stale entry is left in the queue), length of created u32
local NEVER_STARTED = '\192\192\192'
-- The server's time, as a number and as records hold it.
local function read_time()
  local time = call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
  stamp = '\203' .. struct.pack('>d', now)
end

-- `meta` has '' in place of a stop where there are rules that may stop the network.
local function take_stop(value)
  is_judged = value == ''
  stop = value and value ~= '' and value
end

-- Guards a call. Returns a refusal to hand back, or nil and the stored answer when the call is a repetition.
local function begin_call()
  local head = call('HMGET', META, 'epoch', 'wire', 'stop')
  local epoch = head[1] or '0'
  take_stop(head[3])
  slot = CLIENT .. ':' .. (tonumber(NUMBER) % WINDOW)
  local last = call('HGET', CALLS, slot)
  local number, answer
  if last then
    local space = string.find(last, ' ', 1, true)
    number, answer = sub(last, 1, space - 1), sub(last, space + 1)
  end
  if epoch ~= EPOCH then
    -- The call that created this network knew of no epoch, and may come again.
    if EPOCH ~= '0' or number ~= NUMBER then return { 'EPOCH', epoch, head[2] or WIRE } end
    EPOCH = epoch
  end
  if number == NUMBER then return nil, cmsgpack.unpack(answer) end
  if number and tonumber(number) > tonumber(NUMBER) then return { 'OLD' } end
  read_time()
  return nil, nil
end

-- Makes the network exist; only scripts that grow the data may. `last_known`: the highest epoch the caller ever saw; `seed`: that
-- of its proposals, '' for none.
local function create_network(last_known, seed)
  if EPOCH == '0' then
    EPOCH = string.format('%.0f', math.max(math.floor(now * 1e6), tonumber(last_known) + 1))
    call('HSET', META, 'epoch', EPOCH, 'wire', WIRE, 'seq', 0)
    if seed ~= '' then call('HSET', META, 'seed', seed) end
  end
end

local function counts()
  return { call('HLEN', QUEUED), call('HLEN', RUNNING), call('LLEN', FINISHED), call('HLEN', FAILED), call('HLEN', ALIVE) }
end

-- The msgpack bytes of a text, as worker ids and names of outputs are in records.
local function packed(text)
  local n = #text
  if n < 32 then return char(160 + n) .. text end
  if n < 256 then return '\217' .. char(n) .. text end
  if n < 65536 then return '\218' .. struct.pack('>I2', n) .. text end
  return '\219' .. struct.pack('>I4', n) .. text
end

-- What happened, as groups {kind, worker, key, ...} that are packed as they come: `add` extends the last group while kind and
-- worker are the same and it fits into one message.
local KINDS = {
  queued = 'Q', started = 'S', finished = 'F', failed = 'X', worker_started = 'W', worker_stopped = 'E', worker_lost = 'L',
  stopped = 'T', resumed = 'R', places = 'P',
}
local events, open_kind, open_worker, parts, n_parts, size = {}, nil, nil, {}, 0, 0
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
    parts[1], parts[2] = packed(KINDS[kind]), packed(worker)
  end
  if key then
    n_parts, size = n_parts + 1, size + #part
    parts[n_parts] = part
  end
end

-- Publishes the groups in messages of about a KiB at most. The last thing a script does.
local function publish_events(seq, n)
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

local function reply(seq, n, answer, extra)
  local result = { EPOCH, seq, n[1], n[2], n[3], n[4], n[5], stop, answer }
  for i = 1, extra and #extra or 0 do result[9 + i] = extra[i] end
  return result
end

local function store_answer(answer) call('HSET', CALLS, slot, NUMBER .. ' ' .. cmsgpack.pack(answer)) end

-- Ends a call that was executed: raises seq by the number of groups, stores the answer, publishes, replies. `stored` is what a
-- repetition is to find, where that is less than the answer.
local function commit(answer, extra, stored)
  close_group()
  local seq, moved = 0, #events
  if EPOCH ~= '0' then
    seq = moved > 0 and call('HINCRBY', META, 'seq', moved) or tonumber(call('HGET', META, 'seq'))
    store_answer(stored or answer)
  end
  local n = counts()
  if moved > 0 then publish_events(seq, n) end
  return reply(seq, n, answer, extra)
end

-- Answers a repetition with what the first call answered.
local function repeated(known, answer, extra)
  -- Written again, because a client that wants replicas to have it waits for the last write of its own connection.
  store_answer(known)
  return reply(tonumber(call('HGET', META, 'seq') or 0), counts(), answer or known, extra)
end

-- Which of these workers are alive: a table worker -> its value in `alive`, or false.
local function alive_of(workers)
  local found, names = {}, {}
  for i = 1, #workers do
    if found[workers[i]] == nil then
      found[workers[i]] = false
      names[#names + 1] = workers[i]
    end
  end
  for first = 1, #names, MOST_WORDS do
    local last = math.min(first + MOST_WORDS - 1, #names)
    local alive = call('HMGET', ALIVE, unpack(names, first, last))
    for i = first, last do found[names[i]] = alive[i - first + 1] end
  end
  return found
end
