-- Functions that reply, for scripts that do so in several places.
require('begin')

local function counts()
  include('counts')
  return n
end

local function reply(n, answer, extra)
  include('reply_with')
end
