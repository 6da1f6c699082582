-- Sets the stop rules of the network, in place of those it had. `lifts` is 1 for a resumption: it lifts the stop, too.
-- ARGV  ... lifts, spec (a msgpack map: finished, failed, seconds, output, maximize, target, patience), then the best output of
--       the first `n_read` finished tasks without imported ones, '' for none
-- answer: 'set'; 'same' where these rules hold already, also in a network that they have stopped; 'stopped' where other rules
--         have stopped it; 'behind' where so many tasks have finished since that the caller has to read them, or fewer than
--         it read; or, of a resumption, the rule that is true already, so that nothing was changed
local MOST_READ = 1000
require('call')
if known then return repeated() end

local old, lifts = call('HGET', META, 'rules'), LIFTS == '1'
if not lifts then
  if old and cmsgpack.unpack(old).spec == SPEC then return commit('same') end
  if stop then return commit('stopped') end
end
local rules = cmsgpack.unpack(SPEC)
require('judge')
local n_finished, n_failed, n_read = call('LLEN', FINISHED), call('HLEN', FAILED), tonumber(N_READ)
if rules.output then
  if n_finished < n_read or n_finished > n_read + MOST_READ then return commit('behind') end
  rules.best, rules.best_at = tonumber(BEST), n_finished - judge.n_imported
  local name, imported = packed(rules.output), {}
  for first, past_end in string.gmatch(call('HGET', META, 'imported_at') or '', '(%d+) (%d+)') do
    for place = math.max(first, n_read), past_end - 1 do imported[place] = true end
  end
  for i, record in ipairs(call('LRANGE', FINISHED, n_read, -1)) do
    local value = not imported[n_read + i - 1] and judge.output_at(record, judge.outputs_of(record), name)
    if judge.is_better(value, rules.best) then rules.best = value end
  end
end
if lifts then
  local is_true = judge.true_rule(n_finished, n_failed)
  if is_true then return commit(is_true) end
end

local has_rules = next(rules) ~= nil
if EPOCH == '0' and not has_rules then return commit('set') end
include('create')
rules.spec, rules.deadline = SPEC, rules.seconds and now + rules.seconds
if has_rules then
  call('HSET', META, 'rules', cmsgpack.pack(rules), 'stop', '')
else
  call('HDEL', META, 'rules', 'stop')
end
if stop then
  local seq = judge.next_seq()
  stop = false
  add(NETWORK_RESUMED, '')
  judge.publish('resumed', EPOCH, seq)
else
  add(PLACES_CHANGED, '')
end
judge.ended(n_finished, n_failed, false)
return commit('set')
