-- Finds what no other step would: a batch without a lease, a dead letter that does not stand in all of its keys, and what brands
-- are said to hold where nothing is held.
-- ARGV: 4 most dead letters to compare, then ids of batches that hold items. Answers {strays, repaired}.
begin()
local strays, repaired = 0, 0
for i = 5, #ARGV do
  if not redis.call('ZSCORE', LEASES, ARGV[i]) then
    local items = count_held(ARGV[i])
    if items > 0 then
      redis.call('ZADD', LEASES, NOW, ARGV[i])
      strays = strays + items
    end
  end
end
if redis.call('ZCARD', DEAD) ~= redis.call('HLEN', LETTERS) then
  for _, id in ipairs(redis.call('ZRANGE', DEAD, 0, tonumber(ARGV[4]))) do
    if redis.call('HEXISTS', LETTERS, id) == 0 then
      redis.call('ZREM', DEAD, id)
      repaired = repaired + 1
    end
  end
  for _, id in ipairs(redis.call('HRANDFIELD', LETTERS, tonumber(ARGV[4])) or {}) do
    if not redis.call('ZSCORE', DEAD, id) then
      redis.call('ZADD', DEAD, NOW, id)
      repaired = repaired + 1
    end
  end
end
-- Letters from before brands had their own index get into it by and by.
local indexed = 0
for _, field in ipairs(redis.call('HKEYS', DEAD_SHARES)) do
  if not string.find(field, ':', 1, true) then indexed = indexed + redis.call('ZCARD', dead_of(field)) end
end
if indexed ~= redis.call('ZCARD', DEAD) then
  for _, id in ipairs(redis.call('HRANDFIELD', LETTERS, tonumber(ARGV[4])) or {}) do
    local element = redis.call('HGET', LETTERS, id)
    local item = read(element)
    if item and redis.call('ZADD', dead_of(item.brand), 'NX', redis.call('ZSCORE', DEAD, id) or NOW, id) == 1 then
      add_to_dead(item.brand, 1, #element)
    end
  end
end
if waiting_in_all() == 0 and redis.call('ZCARD', DELAYED) == 0 and redis.call('ZCARD', LEASES) == 0 then
  redis.call('DEL', SHARES)
end
count('strays', strays + repaired)
return {strays, repaired}
