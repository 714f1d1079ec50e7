-- Takes locks. Guards: all or nothing, and each grant has a higher fencing token than the one before.
-- KEYS: 1 the last fencing token, then the locks
-- ARGV: 1 token, 2 time to live in ms, 3 the highest fencing token known to have been used, or empty
-- Answers the fencing token, 0 when somebody else holds one of them, -1 when the last fencing token is forgotten.
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then return 0 end -- guard: exclusion
end
local last, seed = tonumber(redis.call('GET', KEYS[1])), tonumber(ARGV[3])
if not last and not seed then return -1 end
local fence = math.max(last or 0, seed or 0) + 1
redis.call('SET', KEYS[1], string.format('%.0f', fence))
for i = 2, #KEYS do redis.call('SET', KEYS[i], ARGV[1], 'NX', 'PX', ARGV[2]) end
return fence
