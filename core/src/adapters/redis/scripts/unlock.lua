-- Releases locks. Guards: nobody releases another's.
-- KEYS: the locks. ARGV: 1 token. Answers how many were released.
local released = 0
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then -- guard: owner
    redis.call('DEL', KEYS[i])
    released = released + 1
  end
end
return released
