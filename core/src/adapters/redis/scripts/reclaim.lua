-- Gives batches back whose lease ran out. Guards: each item ends in exactly one place, and an item that kills its worker is
-- separated from its neighbours before losses count against it.
-- ARGV: 4 most batches, 5 losses that bury, 6 what the history says of a loss, 7 and of the last one, as JSON strings,
--       8 most dead letters of a brand, 9 most bytes of them, 10 losses that bury although the workers have come back since
-- Answers {returned, buried}.
begin()
local returned, buried = 0, 0
local expired = redis.call('ZRANGEBYSCORE', LEASES, '-inf', NOW, 'LIMIT', 0, tonumber(ARGV[4]))
for _, id in ipairs(expired) do
  local elements = held(id)
  local back = {{}, {}, {}}
  for _, element in ipairs(elements) do
    local item = read(element) or {id = redis.sha1hex(element), at = NOW, attempt = 0, losses = 0, priority = 1,
      claims = '-', brand = '0', history = '', payload = element}
    item.suspect = 1
    local in_all = 0
    if #elements == 1 then item.losses, in_all = lose(item.id, id) end
    if item.losses >= tonumber(ARGV[5]) or in_all >= tonumber(ARGV[10]) then
      note(item, ARGV[7])
      add_to_share(item.brand, -1, -#item.payload)
      bury(item, write(item), tonumber(ARGV[8]), tonumber(ARGV[9]))
      if in_all < tonumber(ARGV[10]) then redis.call('HSET', losses_of(item.id), 'buried', '2') end
      buried = buried + 1
    else
      note(item, ARGV[6])
      local list = back[tonumber(item.priority) + 1]
      list[#list + 1] = write(item)
      returned = returned + 1
    end
  end
  redis.call('ZREM', LEASES, id)
  let_go(id)
  for p = 1, 3 do put(SUSPECT, back[p]) end
end
if returned > 0 then wake() end
count('reclaimed', returned)
count('buried', buried)
return {returned, buried}
