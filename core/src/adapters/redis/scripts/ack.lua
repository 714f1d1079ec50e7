-- Ends a batch. Guards: only the holder of the lease can; whoever lost it changes nothing.
-- ARGV: 4 the batch's id, 5 what the history says of an item whose loss counts no more, as a JSON string, 6 most dead letters of a
--       brand, 7 most bytes of them, 8 how many brands' items leave the queue, for each the brand, items, bytes; how many done items have claims, for each its id and its claims; then per unfinished item: what
--       becomes of it ('retry' | 'defer' | 'bury' | 'release'), delay in ms, element
-- Answers 1, or 0 when the lease is lost.
local id = ARGV[4]
if not redis.call('ZSCORE', LEASES, id) then -- guard: token
  begin()
  survived(id, ARGV[5])
  return 0
end
local claims_at = 9 + tonumber(ARGV[8]) * 3
local first = claims_at + 1 + tonumber(ARGV[claims_at]) * 2
local items = {}
for at = first, #ARGV, 3 do
  items[at] = read(ARGV[at + 2])
  if not items[at] then return redis.error_reply('ERR an unfinished item cannot be read') end
end
local done = count_held(id) - (#ARGV - first + 1) / 3
redis.call('ZREM', LEASES, id)
let_go(id)
for at = 9, claims_at - 1, 3 do add_to_share(ARGV[at], -ARGV[at + 1], -ARGV[at + 2]) end
for at = claims_at + 1, first - 1, 2 do finish(ARGV[at], ARGV[at + 1], 'done') end
local retried, buried = 0, 0
local suspects, released = {}, {{}, {}, {}}
for at = first, #ARGV, 3 do
  local what, delay, element = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local item = items[at]
  if what == 'retry' then
    redis.call('ZADD', DELAYED, NOW + delay, element)
    retried = retried + 1
  elseif what == 'defer' then
    redis.call('ZADD', DELAYED, NOW + delay, element)
  elseif what == 'bury' then
    bury(item, element, tonumber(ARGV[6]), tonumber(ARGV[7]))
    buried = buried + 1
  elseif item.suspect == '1' then
    suspects[#suspects + 1] = element
  else
    local list = released[item.priority + 1]
    list[#list + 1] = element
  end
end
put(SUSPECT, suspects)
for p = 1, 3 do put(FRONT[p], released[p]) end
if #suspects + #released[1] + #released[2] + #released[3] > 0 then wake() end
count('acked', done)
count('retried', retried)
count('buried', buried)
return 1
