-- Which of these workers are alive: a table worker -> its value in `alive`, or false.
local function alive_of(workers)
  local found, names = {}, {}
  for i = 1, #workers do
    if found[workers[i]] == nil then
      found[workers[i]] = false
      names[#names + 1] = workers[i]
    end
  end
  for first = 1, #names, MOST_WORDS do
    local last = math.min(first + MOST_WORDS - 1, #names)
    local alive = call('HMGET', ALIVE, unpack(names, first, last))
    for i = first, last do found[names[i]] = alive[i - first + 1] end
  end
  return found
end
