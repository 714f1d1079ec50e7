-- Puts dead letters back to pending. Guards: a letter is in the dead letters or in the queue, never in both.
-- ARGV: 4 what the history says of it, as a JSON string, then ids. Answers how many were there.
begin()
local back = 0
for i = 5, #ARGV do
  local item = exhume(ARGV[i])
  if item then
    item.attempt, item.losses = 0, 0
    redis.call('DEL', losses_of(item.id))
    note(item, ARGV[4])
    put(item.suspect == '1' and SUSPECT or PENDING[item.priority + 1], {write(item)})
    add_to_share(item.brand, 1, #item.payload)
    back = back + 1
  end
end
if back > 0 then wake() end
return back
