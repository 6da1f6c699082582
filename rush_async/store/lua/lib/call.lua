-- For scripts that many workers do not call all the time: the guard of a numbered call, and its ends as functions.
require('guard')
require('add')

local function commit(answer, extra, stored)
  include('commit')
end

local function repeated(answer, extra)
  local known = answer or known
  include('repeated')
end
