-- The counts of a reply, `n`.
local n = { call('HLEN', QUEUED), call('HLEN', RUNNING), call('LLEN', FINISHED), call('HLEN', FAILED), call('HLEN', ALIVE) }
