-- Drops dead letters of a brand that are too old. ARGV: 4 brand, 5 most letters, 6 buried before, in ms. Answers how many.
begin()
local old = redis.call('ZRANGEBYSCORE', dead_of(ARGV[4]), '-inf', '(' .. ARGV[6], 'LIMIT', 0, tonumber(ARGV[5]))
for _ = 1, #old do drop(ARGV[4]) end
return #old
