-- Replies what is stored of a call; of a pop, whose items are workers, the records that they still hold.
local is_pop = #ARGV >= FIRST
local answer = known or false
if known and is_pop then answer = with_records(known) end
extra = { is_pop and 'left off' or 1 }
include('counts')
include('reply_with')
