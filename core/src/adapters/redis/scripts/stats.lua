-- Counts. Writes nothing.
-- Answers {pending, in flight, delayed, dead, age of the oldest in ms, paused, {counters}}.
local pending, since = 0, NOW
for _, place in ipairs({SUSPECT, FRONT[1], FRONT[2], FRONT[3], PENDING[1], PENDING[2], PENDING[3]}) do
  local items = waiting(place)
  pending = pending + items
  if items > 0 then
    local at = tonumber(string.match(oldest(place) or '', '^%S+ (%d+)'))
    if at then since = math.min(since, at) end
  end
end
return {pending, in_flight(), redis.call('ZCARD', DELAYED), redis.call('ZCARD', DEAD), NOW - since,
  redis.call('EXISTS', PAUSED), redis.call('HGETALL', STATS)}
