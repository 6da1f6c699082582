-- For scripts that reply in several places.
-- A reply is {epoch, seq, n_queued, n_running, n_finished, n_failed, n_workers, stop, answer, ...}.
require('begin')

local function counts()
  include('counts')
  return n
end

local function reply(n, answer, extra)
  include('reply_with')
end
