-- Extends locks. Guards: only their holder can, and only all of them.
-- KEYS: the locks. ARGV: 1 token, 2 time to live in ms. Answers 1, or 0 when one is not the holder's.
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) ~= ARGV[1] then return 0 end -- guard: owner
end
for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return 1
