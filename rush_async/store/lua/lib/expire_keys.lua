-- All keys of a network that has ended expire at one moment. The first call after which it has not lifts that from all. `n`: its
-- counts.
local prefix, limit = sub(META, 1, -5), string.match(ttl, '^%d+')
local has_ended = limit and n[1] + n[2] + n[5] == 0 and call('HLEN', prefix .. 'passing') == 0
if has_ended or sub(ttl, -1) == '-' then
  if limit then call('HSET', META, 'ttl', limit .. (has_ended and '-' or '')) end
  local at = has_ended and string.format('%.0f', now * 1000 + limit)
  local function set(name)
    if at then call('PEXPIREAT', prefix .. name, at) else call('PERSIST', prefix .. name) end
  end
  for name in string.gmatch('meta calls calls:clients queue queued running finished failed alive workers passing leases processes '
    .. 'log starts attributes task_attributes claims rankings reports reserved returned points imported_failed', '%S+') do set(name) end
  for _, name in ipairs(redis.pcall('HKEYS', prefix .. 'rankings')) do set('rankings:' .. name) end
end
