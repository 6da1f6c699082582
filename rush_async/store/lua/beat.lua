-- A process is alive: its leases and those of the workers it vouches for are renewed, never resurrected; then leases that have
-- expired are judged and their workers shut out, unless nobody beat for so long that the server, or its clock, must have stood
-- still: then every lease is renewed and nobody judged. A late copy renews, at worst, what has just been renewed.
-- ARGV  0 '' 0, failure of lost workers (msgpack), number of leases, then leases: lease, seconds since its loop answered; then
--       workers vouched for
-- answer: 1 when more is to be judged at once, else 0; then the pace (seconds, '' for none), the number of requests made so far,
--         the leases that are gone and the workers that this call shut out, each joined by '|', and workers to be cleared: state,
--         worker, ...
local MOST = 1000
local head = call('HMGET', META, 'epoch', 'seq', 'beat_at', 'pace', 'asks')
EPOCH = head[1] or '0'
local gone = {}
local last_own = 5 + 2 * tonumber(ARGV[5])
if EPOCH == '0' then
  for i = 6, last_own, 2 do gone[#gone + 1] = ARGV[i] end
  return reply(0, counts(), '0', { '', '0', concat(gone, '|'), '' })
end
look_at_clock()
local last, pace = tonumber(head[3]), tonumber(head[4])

local function times_of(lease)
  local text = call('HGET', PROCESSES, lease)
  if text then return string.match(text, '^(%S+) (%S+)') end
end
local function renew(lease)
  local expire, period = times_of(lease)
  if expire then call('ZADD', LEASES, 'XX', now + tonumber(expire), lease) end
  return expire, period
end

for i = 6, last_own, 2 do
  if call('ZSCORE', LEASES, ARGV[i]) then
    local expire, period = renew(ARGV[i])
    call('HSET', PROCESSES, ARGV[i], expire .. ' ' .. period .. ' ' .. string.format('%.6f', now - tonumber(ARGV[i + 1])))
  else
    gone[#gone + 1] = ARGV[i]
  end
end
for i = last_own + 1, #ARGV do
  local lease = call('HGET', ALIVE, ARGV[i])
  if lease then renew(string.match(lease, '^[^ ]+')) end
end
call('HSET', META, 'beat_at', string.format('%.6f', now))

local more, fenced = '0', {}
if not last or now < last or (pace and now - last >= 2 * pace) then
  for _, lease in ipairs(call('ZRANGE', LEASES, 0, -1)) do renew(lease) end
else
  local expired = call('ZRANGEBYSCORE', LEASES, '-inf', string.format('(%.6f', now), 'LIMIT', 0, MOST)
  if #expired == MOST then more = '1' end
  local is_over = {}
  for _, lease in ipairs(expired) do is_over[lease] = true end
  for place, before in pairs(#expired > 0 and { [ALIVE] = '', [PASSING] = 'in:' } or {}) do
    local all = call('HGETALL', place)
    for i = 1, #all, 2 do
      local lease = string.match(all[i + 1], '^' .. before .. '([^ ]+)')
      if is_over[lease] then
        if #fenced < MOST then
          fenced[#fenced + 1] = all[i]
          fence(all[i], call('HGET', WORKERS, all[i]), 'lost', ARGV[4])
        else
          is_over[lease], more = false, '1' -- its other workers are for the next call
        end
      end
    end
  end
  for i = #expired, 1, -1 do
    if not is_over[expired[i]] then table.remove(expired, i) end
  end
  end_leases(expired)
  if #fenced > 0 then head[5] = call('HINCRBY', META, 'asks', 1) end
  tell({ 'out', EPOCH, 'lost' }, fenced)
end

local extra = { call('HGET', META, 'pace') or '', tostring(head[5] or 0), concat(gone, '|'), concat(fenced, '|') }
local passing = call('HGETALL', PASSING)
for i = 1, #passing, 2 do
  if passing[i + 1] == 'out' then
    extra[#extra + 1] = string.match(call('HGET', WORKERS, passing[i]), '^clearing%-([^ ]+)')
    extra[#extra + 1] = passing[i]
    if #extra > 2 * MOST then
      more = '1'
      break
    end
  end
end
return reply(tonumber(head[2] or 0), counts(), more, extra)
