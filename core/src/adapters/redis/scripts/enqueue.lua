-- Takes items in. Guards: an item whose idempotency key was seen is not added, and a key is remembered if and only if its
-- item is added - there is no moment between the two. Nothing is written unless all of it can be.
-- KEYS: 1-3 pending lists by priority, 4 wake, 5 delayed, 6 stats, then the claim keys in the items' order
-- ARGV: 1 most items pending and delayed (0: any), 2 claim time to live in ms, then per item:
--       place in KEYS 1-3, delay in ms, number of its claim keys, element
-- Answers {depth} when full, else {-1, then the indices (from 1) of duplicates}.
local limit, claim_ttl = tonumber(ARGV[1]), ARGV[2]
local count = (#ARGV - 2) / 4
if limit > 0 then
  local depth = redis.call('LLEN', KEYS[1]) + redis.call('LLEN', KEYS[2]) + redis.call('LLEN', KEYS[3])
    + redis.call('ZCARD', KEYS[5])
  if depth + count > limit then return {depth} end
end
local now
local function now_ms()
  if not now then
    local t = redis.call('TIME')
    now = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  return now
end
local answer = {-1}
local lists, lengths = {{}, {}, {}}, {0, 0, 0}
local claim, added = 7, 0
for i = 1, count do
  local at = 3 + (i - 1) * 4
  local claims = tonumber(ARGV[at + 2])
  local duplicate = false
  for k = claim, claim + claims - 1 do
    if redis.call('EXISTS', KEYS[k]) == 1 then duplicate = true end
  end
  if duplicate then
    answer[#answer + 1] = i
  else
    for k = claim, claim + claims - 1 do
      redis.call('SET', KEYS[k], now_ms(), 'PX', claim_ttl)
    end
    added = added + 1
    local delay = tonumber(ARGV[at + 1])
    if delay > 0 then
      redis.call('ZADD', KEYS[5], now_ms() + delay, ARGV[at + 3])
    else
      local p = tonumber(ARGV[at])
      lengths[p] = lengths[p] + 1
      lists[p][lengths[p]] = ARGV[at + 3]
      if lengths[p] == 500 then
        redis.call('LPUSH', KEYS[p], unpack(lists[p]))
        lists[p], lengths[p] = {}, 0
      end
    end
  end
  claim = claim + claims
end
for p = 1, 3 do
  if lengths[p] > 0 then redis.call('LPUSH', KEYS[p], unpack(lists[p])) end
end
-- A marker carries no work: losing one costs a poll, never an item.
if added > 0 and redis.call('LLEN', KEYS[4]) < 16 then redis.call('LPUSH', KEYS[4], '1') end
redis.call('HINCRBY', KEYS[6], 'enqueued', added)
if #answer > 1 then redis.call('HINCRBY', KEYS[6], 'duplicates', #answer - 1) end
return answer
