-- Returns reserved indices that do not become tasks. An item is a worker and an index.
-- answer: for each item 1 returned, 0 the worker does not have that index
require('call')
require('reserved')
if known then return repeated() end

local answer = {}
for at = FIRST, #ARGV, ITEM_SIZE do
  local worker, index = ARGV[at + WORKER], ARGV[at + INDEX]
  local has_it = take_reserved(worker, index)
  if has_it then return_index(worker, index) end
  answer[#answer + 1] = has_it and 1 or 0
end
return commit(answer)
