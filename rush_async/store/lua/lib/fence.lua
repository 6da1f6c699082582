-- For scripts that shut workers out.

require('reserved')

-- Shuts a worker out: none of its calls moves anything any more, and what it runs is cleared next (a fencing token without a
-- number: the entry in `alive` is what each call checks).
local function fence(worker, entry, state, failure)
  local space = string.find(entry, ' ', 1, true)
  call('HDEL', ALIVE, worker)
  return_reserved(worker)
  call('HSET', PASSING, worker, 'out')
  call('HSET', WORKERS, worker, 'clearing-' .. state .. sub(entry, space) .. failure)
end
