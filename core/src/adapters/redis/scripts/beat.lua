-- Extends leases. Guards: a lease that went to somebody else is not taken back.
-- KEYS: 1 leases   ARGV: 1 lease in ms, then batch ids
-- Answers the ids that are lost.
local t = redis.call('TIME')
local deadline = t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[1])
local lost = {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], deadline, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
