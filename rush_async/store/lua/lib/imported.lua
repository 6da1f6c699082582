-- For scripts that take tasks in which ran elsewhere: they count in no stop rule. `meta` has how many of the finished tasks these
-- are, and their places in the list: first, behind, first, behind ..., joined by blanks.

-- Notes `n` finished tasks that were appended, the first of them at place `first`.
local function note_imported(first, n)
  local places = call('HGET', META, 'imported_at') or ''
  local before, last = string.match(places, '^(.-)(%d*)$')
  if tonumber(last) == first then places = before else places = places .. (places == '' and '' or ' ') .. first .. ' ' end
  call('HSET', META, 'imported_at', places .. string.format('%d', first + n))
  call('HINCRBY', META, 'imported', n)
end
