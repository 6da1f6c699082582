-- For scripts that register workers, end their leases, or send them requests.

-- Publishes names of workers or tasks on `control`, in messages of about a KiB at most.
local function publish_control(message, names)
  for first = 1, #names, 15 do
    local part = { unpack(message) }
    for i = first, math.min(first + 14, #names) do part[#part + 1] = names[i] end
    redis.pcall('SPUBLISH', CONTROL, cmsgpack.pack(part))
  end
end

-- Counts a request to workers, so that a beat tells of it. What another program wrote in its place is no number.
local function raise_asks()
  local n = (tonumber(call('HGET', META, 'asks')) or 0) + 1
  call('HSET', META, 'asks', n)
  return n
end

-- The seconds within which the leases are to be judged: half of `expire - period`, of the process where that is least.
local function pace_of(expire, period) return (tonumber(expire) - tonumber(period)) / 2 end
local function repace()
  local pace
  for _, text in ipairs(call('HVALS', PROCESSES)) do
    local expire, period = string.match(text, '^(%S+) (%S+)')
    local own = tonumber(expire) and tonumber(period) and pace_of(expire, period)
    if own and (not pace or own < pace) then pace = own end
  end
  if pace then call('HSET', META, 'pace', pace) else call('HDEL', META, 'pace') end
end

local function end_leases(leases)
  if #leases == 0 then return end
  call('ZREM', LEASES, unpack(leases))
  call('HDEL', PROCESSES, unpack(leases))
  repace()
end
