-- Finds what no other step would: a batch without a lease, a dead letter that stands in one of its two keys only.
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
count('strays', strays + repaired)
return {strays, repaired}
