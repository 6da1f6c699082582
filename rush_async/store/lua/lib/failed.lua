-- For scripts by which tasks leave `failed`: those that were imported count in the stop rules from then on.
local function leave_imported(keys)
  local n = call('SREM', IMPORTED_FAILED, unpack(keys))
  if n > 0 then call('HINCRBY', META, 'imported_failed', -n) end
end
