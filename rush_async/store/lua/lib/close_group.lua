-- Packs the open group.
if n_parts > 0 then
  local head = n_parts < 16 and char(144 + n_parts) or '\220' .. struct.pack('>H', n_parts)
  events[#events + 1] = head .. concat(parts, '', 1, n_parts)
  n_parts = 0
end
