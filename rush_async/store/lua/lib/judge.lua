-- The judge of the stop rules `rules`: finished, failed, seconds and deadline, output with maximize, target, patience, best and
-- best_at (the number of finished tasks when the best came). Without rules there is none, and none of its functions is made.
local judge
if rules then
  require('add')
  -- What was imported counts in no rule, so it is left out of the numbers of finished and failed tasks that the judge is given.
  local imported = call('HMGET', META, 'imported', 'imported_failed')
  local n_imported_failed = tonumber(imported[2] or 0)
  judge = { n_imported = tonumber(imported[1] or 0) }

  function judge.publish(...)
    local control = string.gsub(EVENTS, ':events(:?%d*)$', ':control%1')
    redis.pcall('SPUBLISH', control, cmsgpack.pack({ ... }))
  end

  -- The number of the event that is added next.
  function judge.next_seq()
    close_group()
    return seq + #events + 1
  end

  function judge.stop(rule, detail)
    local seq = judge.next_seq()
    add(NETWORK_STOPPED, '', rule)
    add(NETWORK_STOPPED, '', detail)
    close_group()
    stop = cmsgpack.pack({ rule, now, seq, detail })
    call('HSET', META, 'stop', stop)
    judge.publish('stopped', EPOCH, rule, now, seq, detail)
  end

  -- Stops a network whose time is up.
  function judge.time()
    if not stop and rules.deadline and now >= rules.deadline then
      judge.stop('seconds', string.format('%.10g seconds have passed', rules.seconds))
    end
  end

  function judge.seconds_left() return not stop and rules.deadline and rules.deadline - now end

  -- How many more tasks may start beside those that are running, reserved or finished; nil for any number.
  function judge.places_left(n_running, n_finished)
    local n_reserved = tonumber(call('HGET', META, 'reserved') or 0)
    return rules.finished and math.max(0, rules.finished - n_running - n_reserved - n_finished + judge.n_imported)
  end

  function judge.is_better(value, best)
    return value and (not best or (rules.maximize and value > best) or (not rules.maximize and value < best))
  end

  -- The first rule that is true for these numbers, with its reason in words; patience is not looked at.
  function judge.true_rule(n_finished, n_failed)
    n_finished, n_failed = n_finished - judge.n_imported, n_failed - n_imported_failed
    if rules.finished and n_finished >= rules.finished then
      return 'finished', string.format('%d tasks have finished', n_finished)
    elseif rules.failed and n_failed >= rules.failed then
      return 'failed', string.format('%d tasks have failed', n_failed)
    elseif rules.target and rules.best and not judge.is_better(rules.target, rules.best) then
      return 'target', string.format('%s = %.10g has reached %.10g', rules.output, rules.best, rules.target)
    end
  end

  -- After a task ended: stops the network where a rule is true. `ended`: the outputs of a task that has just finished, as the
  -- last of `n_finished`; else false.
  function judge.ended(n_finished, n_failed, ended)
    if stop then return end
    local value = ended and rules.output and judge.output_at(ended, 1, packed(rules.output))
    local n_own = n_finished - judge.n_imported
    if judge.is_better(value, rules.best) then
      rules.best, rules.best_at = value, n_own
      call('HSET', META, 'rules', cmsgpack.pack(rules))
    end
    local rule, detail = judge.true_rule(n_finished, n_failed)
    if not rule and rules.patience and n_own - rules.best_at >= rules.patience then
      rule, detail = 'patience', string.format('%s has not improved in %d finished tasks', rules.output, n_own - rules.best_at)
      if rules.best then detail = detail .. string.format('; its best is %.10g', rules.best) end
    end
    if rule then judge.stop(rule, detail) end
  end

end

if rules and rules.output then
  -- For each type of msgpack whose length follows: bytes of the length, bytes for each unit of it, values for each unit, and how
  -- many bytes more.
  local SIZED = {
    [196] = { 1, 1, 0, 0 }, [197] = { 2, 1, 0, 0 }, [198] = { 4, 1, 0, 0 }, -- bin
    [199] = { 1, 1, 0, 1 }, [200] = { 2, 1, 0, 1 }, [201] = { 4, 1, 0, 1 }, -- ext, with its type
    [217] = { 1, 1, 0, 0 }, [218] = { 2, 1, 0, 0 }, [219] = { 4, 1, 0, 0 }, -- str
    [220] = { 2, 0, 1, 0 }, [221] = { 4, 0, 1, 0 }, [222] = { 2, 0, 2, 0 }, [223] = { 4, 0, 2, 0 }, -- array, map
  }
  -- Bytes behind the first for each type of a fixed size: nil, bools, floats, ints, fixext.
  local FIXED = {
    [192] = 0, [194] = 0, [195] = 0, [202] = 4, [203] = 8, [204] = 1, [205] = 2, [206] = 4, [207] = 8, [208] = 1, [209] = 2,
    [210] = 4, [211] = 8, [212] = 2, [213] = 3, [214] = 5, [215] = 9, [216] = 17,
  }

  local function length_at(bytes, at, size)
    return struct.unpack(size == 1 and 'B' or size == 2 and '>I2' or '>I4', bytes, at)
  end

  -- The place behind `n` values that begin at `at`; nil where they cannot be read.
  local function values_end(bytes, at, n)
    while n > 0 do
      local first = byte(bytes, at)
      if not first then return nil end
      n, at = n - 1, at + 1
      if first >= 128 and first < 144 then -- a short map
        n = n + 2 * (first - 128)
      elseif first >= 144 and first < 160 then -- a short array
        n = n + first - 144
      elseif first >= 160 and first < 192 then -- a short str
        at = at + first - 160
      elseif SIZED[first] then
        local size, n_bytes, n_values, more = unpack(SIZED[first])
        if at + size > #bytes + 1 then return nil end
        local length = length_at(bytes, at, size)
        n, at = n + n_values * length, at + size + n_bytes * length + more
      elseif FIXED[first] then
        at = at + FIXED[first]
      elseif first >= 128 and first < 224 then
        return nil
      end
    end
    return at <= #bytes + 1 and at or nil
  end

  local function output_at(bytes, at, name)
    local first = at and byte(bytes, at)
    local n, from
    if first and first >= 128 and first < 144 then
      n, from = first - 128, at + 1
    elseif (first == 222 or first == 223) and #bytes >= at + 4 then
      local size = first == 222 and 2 or 4
      n, from = length_at(bytes, at + 1, size), at + 1 + size
    end
    for _ = 1, n or 0 do
      local value = values_end(bytes, from, 1)
      local behind = value and values_end(bytes, value, 1)
      if not behind then return nil end
      if sub(bytes, from, value - 1) == name then
        local kind = byte(bytes, value)
        local is_number = kind < 128 or kind >= 224 or (kind >= 202 and kind <= 211)
        local number = is_number and cmsgpack.unpack(sub(bytes, value, behind - 1))
        if kind == 207 and number < 0 then number = number + 2 ^ 64 end -- cmsgpack takes it for a signed one
        return number and number == number and number or nil
      end
      from = behind
    end
  end

  -- Behind key, xs, xs_extra, basis, created_at, index, worker, attempt and started_at.
  local function outputs_of(record) return values_end(record, 1, 9) end

  judge.output_at, judge.outputs_of = output_at, outputs_of
end
