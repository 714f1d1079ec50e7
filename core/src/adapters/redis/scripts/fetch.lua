-- Takes items from pending into a batch under a lease. Guards: both happen here, so no item is ever out of pending and
-- under no lease. An item that was lost before is taken alone.
-- KEYS: 1-3 pending lists by priority, 4 suspects, 5 wake, 6 delayed, 7 leases, 8 the new batch
-- ARGV: 1 most items, 2 lease in ms, 3 the batch's id, 4 most delayed items to promote
-- Answers the items, oldest first.
local want, lease = tonumber(ARGV[1]), tonumber(ARGV[2])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', now, 'LIMIT', 0, tonumber(ARGV[4]))
for _, element in ipairs(due) do
  local suspect, priority = string.match(element, '^%S+ %d+ %d+ ([01]) %d+ ([012])\n')
  redis.call('LPUSH', suspect == '1' and KEYS[4] or KEYS[tonumber(priority or 1) + 1], element)
  redis.call('ZREM', KEYS[6], element)
end
local taken = redis.call('RPOP', KEYS[4], 1)
if not taken or #taken == 0 then
  taken = {}
  for p = 1, 3 do
    if #taken < want then
      local more = redis.call('RPOP', KEYS[p], want - #taken)
      if more then
        for _, element in ipairs(more) do taken[#taken + 1] = element end
      end
    end
  end
end
if #taken == 0 then return taken end
for from = 1, #taken, 500 do
  redis.call('RPUSH', KEYS[8], unpack(taken, from, math.min(from + 499, #taken)))
end
redis.call('ZADD', KEYS[7], now + lease, ARGV[3])
local left = redis.call('LLEN', KEYS[1]) + redis.call('LLEN', KEYS[2]) + redis.call('LLEN', KEYS[3])
  + redis.call('LLEN', KEYS[4])
if left > 0 and redis.call('LLEN', KEYS[5]) < 16 then redis.call('LPUSH', KEYS[5], '1') end
return taken
