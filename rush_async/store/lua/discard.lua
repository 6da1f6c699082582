-- Removes malformed records, where what is stored is still what was read. An item is a place, a name and what is stored there: of
-- a task that is not finished or a worker its key, of a finished task its number in the list, of the log the id of the entry. A
-- finished one becomes an empty text, so that the others keep their numbers; it still counts as finished.
-- answer: how many were removed
require('call')
require('failed')
if known then return repeated() end

local hashes, n = { queued = QUEUED, running = RUNNING, failed = FAILED, workers = WORKERS }, 0
for at = FIRST, #ARGV, ITEM_SIZE do
  local place, name, data = ARGV[at + PLACE], ARGV[at + NAME], ARGV[at + DATA]
  local hash = hashes[place]
  if hash and call('HGET', hash, name) == data then
    n = n + call('HDEL', hash, name)
    if place == 'failed' then leave_imported({ name }) end
    add(PLACES_CHANGED, '')
  elseif place == 'finished' and call('LINDEX', FINISHED, name) == data then
    call('LSET', FINISHED, name, '')
    n = n + 1
  elseif place == 'log' then
    n = n + call('XDEL', LOG, name)
  end
end
return commit(n)
