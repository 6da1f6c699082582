-- Replies `answer` with the counts `n`, and `extra` or nil: {epoch, seq, n_queued, n_running, n_finished, n_failed, n_workers, stop,
-- answer, ...}.
local result = { EPOCH, seq, n[1], n[2], n[3], n[4], n[5], stop, answer }
for i = 1, extra and #extra or 0 do result[9 + i] = extra[i] end
return result
