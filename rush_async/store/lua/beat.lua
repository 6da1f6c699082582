-- A process is alive: renews its leases and those of the workers it vouches for, never one that has ended. Then it judges the
-- leases that have expired and shuts their workers out. Where no process beat for so long that the server or its clock must have
-- stopped, it renews every lease instead. It stops a network whose time is up. A late copy of a beat renews, at worst, what was renewed a moment ago.
-- Entries of `processes`, `passing` and `workers` that cannot be parsed are skipped.
-- ARGV  0 '' 0, failure of lost workers (msgpack), number of leases, then leases: lease, seconds since its loop answered; then
--       workers vouched for
-- answer: 1 when more is to be judged at once, else 0; then the pace (seconds, '' for none), the number of requests made so far,
--         {leases that have ended}, {workers that this call shut out}, {workers to be cleared: state, worker, ...}
local MOST_JUDGED = 1000
require('reply')
EPOCH = epoch
local gone = {}
local last_own = 5 + 2 * tonumber(N_LEASES)
if EPOCH == '0' then
  for i = 6, last_own, 2 do gone[#gone + 1] = ARGV[i] end
  return reply(counts(), '0', { '', 0, gone, {}, {} })
end
require('time')
require('events')
require('add')
require('workers')
require('fence')
local judging = call('HMGET', META, 'beat_at', 'pace', 'asks')
local last, pace, n_asks = tonumber(judging[1]), tonumber(judging[2]), tonumber(judging[3]) or 0

local function renew(lease)
  local expire, period = string.match(call('HGET', PROCESSES, lease) or '', '^(%S+) (%S+)')
  local seconds = tonumber(expire)
  if not (seconds and seconds < math.huge and tonumber(period)) then return nil end
  call('ZADD', LEASES, 'XX', now + seconds, lease)
  return expire, period
end

for i = 6, last_own, 2 do
  if call('ZSCORE', LEASES, ARGV[i]) then
    local expire, period = renew(ARGV[i])
    if expire then
      call('HSET', PROCESSES, ARGV[i], expire .. ' ' .. period .. ' ' .. string.format('%.6f', now - tonumber(ARGV[i + 1])))
    end
  else
    gone[#gone + 1] = ARGV[i]
  end
end
for i = last_own + 1, #ARGV do
  local lease = string.match(call('HGET', ALIVE, ARGV[i]) or '', '^[^ ]+')
  if lease then renew(lease) end
end
call('HSET', META, 'beat_at', string.format('%.6f', now))

local more, fenced = '0', {}
if not last or now < last or (pace and now - last >= 2 * pace) then
  for _, lease in ipairs(call('ZRANGE', LEASES, 0, -1)) do renew(lease) end
else
  local expired = call('ZRANGEBYSCORE', LEASES, '-inf', string.format('(%.6f', now), 'LIMIT', 0, MOST_JUDGED)
  if #expired == MOST_JUDGED then more = '1' end
  local is_over = {}
  for _, lease in ipairs(expired) do is_over[lease] = true end
  for place, before in pairs(#expired > 0 and { [ALIVE] = '', [PASSING] = 'in:' } or {}) do
    local all = call('HGETALL', place)
    for i = 1, #all, 2 do
      local lease = string.match(all[i + 1], '^' .. before .. '([^ ]+)')
      if is_over[lease] then
        local entry = call('HGET', WORKERS, all[i])
        if not (entry and string.find(entry, ' ', 1, true)) then
          call('HDEL', place, all[i]) -- its end cannot be recorded
        elseif #fenced < MOST_JUDGED then
          fenced[#fenced + 1] = all[i]
          local seen = tonumber(string.match(call('HGET', PROCESSES, lease) or '', '(%S+)$'))
          fence(all[i], entry, 'lost', FAILURE .. (place == ALIVE and seen and cmsgpack.pack(seen) or ''))
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
  if #fenced > 0 then n_asks = raise_asks() end
  publish_control({ 'out', EPOCH, 'lost' }, fenced)
end

local clearing = {}
local passing = call('HGETALL', PASSING)
for i = 1, #passing, 2 do
  local state = passing[i + 1] == 'out' and string.match(call('HGET', WORKERS, passing[i]) or '', '^clearing%-([^ ]+)')
  if state then
    clearing[#clearing + 1], clearing[#clearing + 2] = state, passing[i]
    if #clearing >= 2 * MOST_JUDGED then
      more = '1'
      break
    end
  end
end
require('rules')
if judge then judge.time() end
close_group()
include('counts')
if #events > 0 then
  seq = seq + #events
  call('HSET', META, 'seq', seq)
  include('publish_events')
end
return reply(n, more, { call('HGET', META, 'pace') or '', n_asks, gone, fenced, clearing })
