-- Counts. Guards nothing; writes nothing.
-- KEYS: 1-3 pending lists by priority, 4 suspects, 5 delayed, 6 leases, 7 dead, 8 stats   ARGV: 1 prefix of batch keys
-- Answers {pending, in flight, delayed, dead, age of the oldest in ms, {counters}}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local pending, oldest = 0, now
for p = 1, 4 do
  pending = pending + redis.call('LLEN', KEYS[p])
  local last = redis.call('LINDEX', KEYS[p], -1)
  if last then oldest = math.min(oldest, tonumber(string.match(last, '^%S+ (%d+)') or now)) end
end
local in_flight = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[6], 0, 999)) do
  in_flight = in_flight + redis.call('LLEN', ARGV[1] .. id)
end
return {pending, in_flight, redis.call('ZCARD', KEYS[5]), redis.call('ZCARD', KEYS[7]), now - oldest,
  redis.call('HGETALL', KEYS[8])}
