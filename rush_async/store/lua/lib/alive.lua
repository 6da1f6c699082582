-- Which of `workers` are alive: `alive`, a table worker -> its value in ALIVE, or false.
local alive, names = {}, {}
for i = 1, #workers do
  if alive[workers[i]] == nil then
    alive[workers[i]] = false
    names[#names + 1] = workers[i]
  end
end
for first = 1, #names, MOST_WORDS do
  local last = math.min(first + MOST_WORDS - 1, #names)
  local found = call('HMGET', ALIVE, unpack(names, first, last))
  for i = first, last do alive[names[i]] = found[i - first + 1] end
end
