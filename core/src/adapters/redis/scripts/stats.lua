-- Counts. Writes nothing.
-- Answers {pending, in flight, delayed, dead, age of the oldest in ms, paused, {counters}, bytes}.
local pending, since = 0, NOW
for _, place in ipairs(PLACES) do
  local items = waiting(place)
  pending = pending + items
  if items > 0 then
    local at = tonumber(string.match(oldest(place) or '', '^%S+ (%d+)'))
    if at then since = math.min(since, at) end
  end
end
return {pending, in_flight(), redis.call('ZCARD', DELAYED), redis.call('ZCARD', DEAD), NOW - since,
  redis.call('EXISTS', PAUSED), redis.call('HGETALL', STATS), tonumber(redis.call('HGET', SHARES, 'all:b') or 0)}
