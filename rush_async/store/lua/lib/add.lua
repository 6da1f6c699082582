-- Functions that note events, for scripts that note them in several places.
local function close_group()
  include('close_group')
end

local function add(kind, worker, key)
  include('add_event')
end
