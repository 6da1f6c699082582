-- Notes that `kind` happened, by `worker` or '', to `key` or nil.
do
  local part = key and packed(key) or ''
  if n_parts == 0 or kind ~= open_kind or worker ~= open_worker or size + #part > MESSAGE then
    include('close_group')
    open_kind, open_worker, n_parts, size = kind, worker, 2, #worker + 8
    parts[1], parts[2] = '\161' .. kind, packed(worker)
  end
  if key then
    n_parts, size = n_parts + 1, size + #part
    parts[n_parts] = part
  end
end
