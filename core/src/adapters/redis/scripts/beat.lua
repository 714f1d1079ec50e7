-- Extends leases. Guards: a lease that went to somebody else is not taken back.
-- ARGV: 4 lease in ms, 5 what the history says of an item whose loss counts no more, as a JSON string, then batch ids. Answers the ids that are lost.
begin()
local lost = {}
for i = 6, #ARGV do
  if redis.call('ZSCORE', LEASES, ARGV[i]) then
    redis.call('ZADD', LEASES, NOW + tonumber(ARGV[4]), ARGV[i]) -- guard: beat
  else
    lost[#lost + 1] = ARGV[i]
    survived(ARGV[i], ARGV[5])
  end
end
return lost
