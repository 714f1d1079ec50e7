-- Takes items in. Guards: an item whose idempotency key was seen is not added, and a key is remembered if and only if its
-- item is added - there is no moment between the two. Nothing is written unless all of it can be.
-- ARGV: 4 most items pending and delayed (0: any), then per item: priority from 1, delay in ms, time to live of its claims
--       in ms, digest, claims ('-' or names with commas), element
-- Answers {depth} when full, else {-1, then i for each duplicate and -i for each conflict, counted from 1}.
local limit, items = tonumber(ARGV[4]), (#ARGV - 4) / 6
if limit > 0 then
  local depth = redis.call('ZCARD', DELAYED) + waiting_in_all()
  if depth + items > limit then return {depth} end
end
local answer, lists = {-1}, {{}, {}, {}}
local added, duplicates, conflicts = 0, 0, 0
for i = 1, items do
  local at = 5 + (i - 1) * 6
  local priority, delay, ttl = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2]
  local digest, claims, element = ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local seen
  if claims ~= '-' then
    for name in string.gmatch(claims, '[^,]+') do
      local held = redis.call('GET', TAG .. ':claim:' .. name)
      local before, till = string.match(held or '', '^(%S+) %S+ %d+ (%d+)')
      if not seen and before and tonumber(till) > NOW then seen = before end
    end
  end
  if seen then
    answer[#answer + 1] = seen == digest and i or -i
    if seen == digest then duplicates = duplicates + 1 else conflicts = conflicts + 1 end
  else
    if claims ~= '-' then
      local claim = string.format('%s %s %.0f %.0f', digest, string.match(element, '^%S+'), NOW, NOW + ttl)
      for name in string.gmatch(claims, '[^,]+') do
        redis.call('SET', TAG .. ':claim:' .. name, claim, 'PX', ttl) -- guard: claim
      end
    end
    added = added + 1
    if delay > 0 then
      redis.call('ZADD', DELAYED, NOW + delay, element)
    else
      local list = lists[priority]
      list[#list + 1] = element
    end
  end
end
for p = 1, 3 do put(PENDING[p], lists[p]) end
if added > 0 then wake() end
count('enqueued', added)
count('duplicates', duplicates)
count('conflicts', conflicts)
return answer
