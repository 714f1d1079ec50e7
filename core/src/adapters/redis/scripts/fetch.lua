-- Takes items into a batch under a lease. Guards: both happen here, so no item is ever out of pending and under no lease.
-- An item that was lost before is taken alone, and first. Nothing is taken while the queue is paused.
-- ARGV: 4 most items, 5 lease in ms, 6 the batch's id, 7 most delayed items to promote, 8 every how many fetches the last
--       are first: the lowest priority before the highest, and suspects after all; 9 most items of low priority, where more than one
--       brand has used the queue since it was last found empty, and 10 after how many bytes no further 11 items of it are taken;
--       12 '1' where the batch may have been fetched before, by a call whose answer was lost: then it is answered again, and nothing is
--       taken, because that call may still come; and 13 what the history says of an item whose loss counts no more, as a JSON string
-- Answers the items.
local want, lease, id = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
if ARGV[12] == '1' then
  begin()
  if count_held(id) > 0 then
    redis.call('ZADD', LEASES, NOW + lease, id)
    return held(id)
  end
  survived(id, ARGV[13])
  return {}
end
if redis.call('EXISTS', PAUSED) == 1 then return {} end -- guard: pause
begin()
local due = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', NOW, 'LIMIT', 0, tonumber(ARGV[7]))
for _, element in ipairs(due) do
  local item = read(element)
  local place = PENDING[(item and item.priority or 1) + 1]
  if item and item.suspect == '1' then place = SUSPECT end
  put(place, {element})
  redis.call('ZREM', DELAYED, element)
end
local turn = (tonumber(redis.call('HGET', STATS, 'fetches')) or 0) + 1
local last_first = turn % tonumber(ARGV[8]) == 0
local taken = {}
if not last_first then taken = take(SUSPECT, id, 1) end
if #taken == 0 then
  -- Two fields a brand, and two for all of them.
  local shared = redis.call('HLEN', SHARES) > 4
  local most_low, bytes = want, 0
  if shared then most_low = math.min(want, tonumber(ARGV[9])) end -- guard: low batch
  -- What has low priority comes by itself.
  local turns = last_first and {{3}, {2, 1}} or {{1, 2}, {3}}
  for _, turn in ipairs(turns) do
    if #taken > 0 then break end -- guard: low alone
    for _, p in ipairs(turn) do
      local small = p == 3 and shared
      local most = p == 3 and most_low or want
      for _, place in ipairs({FRONT[p], PENDING[p]}) do
        local left = true
        while left and #taken < most do
          local step = most - #taken
          if small then step = math.min(step, tonumber(ARGV[11])) end
          local more = take(place, id, step)
          left = small and #more == step
          if #taken == 0 then
            taken = more
          else
            for _, element in ipairs(more) do taken[#taken + 1] = element end
          end
          if small then
            for _, element in ipairs(more) do bytes = bytes + #element end
            if bytes >= tonumber(ARGV[10]) then most = #taken end
          end
        end
      end
    end
  end
end
if #taken == 0 and last_first then taken = take(SUSPECT, id, 1) end
if #taken == 0 then return taken end
redis.call('HSET', STATS, 'fetches', turn)
redis.call('ZADD', LEASES, NOW + lease, id) -- guard: lease
if waiting_in_all() > 0 then wake() end
return taken
