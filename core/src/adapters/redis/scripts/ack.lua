-- Ends a batch. Guards: only the holder of the lease can; whoever lost it changes nothing.
-- KEYS: 1-3 pending lists by priority, 4 suspects, 5 wake, 6 delayed, 7 leases, 8 the batch, 9 dead, 10 stats
-- ARGV: 1 the batch's id, then per unfinished item: what becomes of it, its argument, element
--       'retry' delay in ms | 'bury' 0 | 'release' place in KEYS 1-4
-- Answers 1, or 0 when the lease is lost.
if not redis.call('ZSCORE', KEYS[7], ARGV[1]) then return 0 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local done = redis.call('LLEN', KEYS[8]) - (#ARGV - 1) / 3
local retried, buried, wake = 0, 0, false
redis.call('ZREM', KEYS[7], ARGV[1])
redis.call('UNLINK', KEYS[8])
-- From the last to the first, so that what is released lies at the head of its list in its old order.
for at = #ARGV - 2, 2, -3 do
  local what, arg, element = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  if what == 'retry' then
    redis.call('ZADD', KEYS[6], now + arg, element)
    retried = retried + 1
  elseif what == 'bury' then
    redis.call('ZADD', KEYS[9], now, element)
    buried = buried + 1
  else
    redis.call('RPUSH', KEYS[arg], element)
    wake = true
  end
end
if wake and redis.call('LLEN', KEYS[5]) < 16 then redis.call('LPUSH', KEYS[5], '1') end
if done > 0 then redis.call('HINCRBY', KEYS[10], 'acked', done) end
if retried > 0 then redis.call('HINCRBY', KEYS[10], 'retried', retried) end
if buried > 0 then redis.call('HINCRBY', KEYS[10], 'buried', buried) end
return 1
