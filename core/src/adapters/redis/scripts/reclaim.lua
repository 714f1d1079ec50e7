-- Gives batches back whose lease ran out. Guards: each item ends in exactly one place, and an item that kills its worker is
-- separated from its neighbours before losses count against it.
-- KEYS: 1 leases, 2 suspects, 3 wake, 4 dead, 5 stats
-- ARGV: 1 prefix of batch keys (same hash tag), 2 most batches, 3 losses that bury, 4 why, as a JSON string
-- Answers {returned, buried}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local returned, buried = 0, 0
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(expired) do
  local batch = ARGV[1] .. id
  local elements = redis.call('LRANGE', batch, 0, -1)
  for _, element in ipairs(elements) do
    local _, last, head, losses, priority =
      string.find(element, '^(%S+ %d+ %d+) [01] (%d+) ([012])\n')
    losses = tonumber(losses or 0)
    if #elements == 1 then losses = losses + 1 end
    local payload = string.sub(element, (last or 0) + 1)
    head = (head or 'unreadable 0 0') .. ' 1 ' .. losses .. ' ' .. (priority or 1) .. '\n'
    if losses >= tonumber(ARGV[3]) then
      redis.call('ZADD', KEYS[4], now, head .. ARGV[4] .. '\n' .. payload)
      buried = buried + 1
    else
      redis.call('LPUSH', KEYS[2], head .. payload)
      returned = returned + 1
    end
  end
  redis.call('ZREM', KEYS[1], id)
  redis.call('UNLINK', batch)
end
if returned > 0 then
  redis.call('HINCRBY', KEYS[5], 'reclaimed', returned)
  if redis.call('LLEN', KEYS[3]) < 16 then redis.call('LPUSH', KEYS[3], '1') end
end
if buried > 0 then redis.call('HINCRBY', KEYS[5], 'buried', buried) end
return {returned, buried}
