-- For a repeated pop: the keys that it gave to each worker, each with its record where that worker still holds it. The worker is
-- the first column of an item.
require('held')
local function with_records(known)
  local answer = {}
  for i, keys in ipairs(known) do
    answer[i] = false
    if keys then
      local given, owner = {}, packed(ARGV[FIRST + ITEM_SIZE * (i - 1)])
      for _, key in ipairs(keys) do
        local record = call('HGET', RUNNING, key)
        if record and held_end(record, owner) then given[#given + 1], given[#given + 2] = key, record end
      end
      answer[i] = given
    end
  end
  return answer
end
