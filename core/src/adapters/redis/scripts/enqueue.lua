-- Takes items in. Guards: an item whose idempotency key was seen is not added, and a key is remembered if and only if its
-- item is added - there is no moment between the two. What all brands may hold, and each of them, is kept. Nothing is written
-- unless all of it can be.
-- ARGV: 4 most items, 5 most bytes (0: any), 6 the backlog of a brand beyond which its items wait at low priority (0: none), then per item: priority from 1, delay in ms, time to live of its claims in ms,
--       digest, claims ('-' or names with commas), brand (0: none), how many times the free room it may hold, bytes of what is
--       enqueued, element
-- Answers {holds, 1 for items or 2 for bytes} when full, else {-1, then for each that was not added 4 * i + 1 for a duplicate, + 2
-- for a conflict, + 3 when its brand holds its share; i from 1}.
local EACH, FIRST = 9, 7
local most, most_bytes, backlog = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local items = (#ARGV - FIRST + 1) / EACH
-- What comes for each brand and share.
local come = {}
for i = 1, items do
  local at = FIRST + (i - 1) * EACH
  local who = ARGV[at + 5] .. ' ' .. ARGV[at + 6]
  local one = come[who]
  if not one then
    one = {brand = ARGV[at + 5], times = tonumber(ARGV[at + 6]), items = 0, bytes = 0}
    come[who] = one
  end
  one.items = one.items + 1
  one.bytes = one.bytes + tonumber(ARGV[at + 7])
end
local all = redis.call('HMGET', SHARES, 'all', 'all:b')
local held, held_bytes = tonumber(all[1]) or 0, tonumber(all[2]) or 0
-- A brand may hold so many times the room that stays free. What it may not holds up nobody else.
local want, want_bytes, full = 0, 0, nil
for _, one in pairs(come) do
  if one.brand ~= '0' then
    local its = redis.call('HMGET', SHARES, one.brand, one.brand .. ':b')
    local would, would_bytes = (tonumber(its[1]) or 0) + one.items, (tonumber(its[2]) or 0) + one.bytes
    one.before = would - one.items
    one.over = (most > 0 and would > one.times * (most - held - one.items)) -- guard: share of items
      or (most_bytes > 0 and would_bytes > one.times * (most_bytes - held_bytes - one.bytes)) -- guard: share of bytes
  end
  if most > 0 and held + one.items > most then full = {held, 1} end
  if most_bytes > 0 and held_bytes + one.bytes > most_bytes then full = full or {held_bytes, 2} end
  if not one.over then want, want_bytes = want + one.items, want_bytes + one.bytes end
end
if want == 0 and full then return full end
if want > 0 and most > 0 and held + want > most then return {held, 1} end
if want > 0 and most_bytes > 0 and held_bytes + want_bytes > most_bytes then return {held_bytes, 2} end
local answer, lists, taken = {-1}, {{}, {}, {}}, {}
local added, duplicates, conflicts = 0, 0, 0
for i = 1, items do
  local at = FIRST + (i - 1) * EACH
  local priority, delay, ttl = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2]
  local digest, claims, element = ARGV[at + 3], ARGV[at + 4], ARGV[at + 8]
  local brand, bytes = ARGV[at + 5], tonumber(ARGV[at + 7])
  local seen
  if claims ~= '-' then
    for name in string.gmatch(claims, '[^,]+') do
      local held = redis.call('GET', TAG .. ':claim:' .. name)
      local before, till = string.match(held or '', '^(%S+) %S+ %d+ (%d+)')
      if not seen and before and tonumber(till) > NOW then seen = before end
    end
  end
  if seen then
    answer[#answer + 1] = 4 * i + (seen == digest and 1 or 2)
    if seen == digest then duplicates = duplicates + 1 else conflicts = conflicts + 1 end
  elseif come[brand .. ' ' .. ARGV[at + 6]].over then
    answer[#answer + 1] = 4 * i + 3
  else
    if claims ~= '-' then
      for name in string.gmatch(claims, '[^,]+') do
        local kept = tonumber(ttl)
        if string.sub(name, 1, 7) == 'outbox:' then kept = math.max(kept, STAGED_KEPT) end
        local claim = string.format('%s %s %.0f %.0f', digest, string.match(element, '^%S+'), NOW, NOW + kept)
        redis.call('SET', TAG .. ':claim:' .. name, claim, 'PX', string.format('%.0f', kept)) -- guard: claim
      end
    end
    added = added + 1
    local its = taken[brand] or {0, 0}
    taken[brand] = {its[1] + 1, its[2] + bytes}
    local before = come[brand .. ' ' .. ARGV[at + 6]].before
    if priority == 2 and before and backlog > 0 and before + its[1] >= backlog then -- guard: backlog
      priority, element = 3, string.gsub(element, '^(%S+ %d+ 0 0 0) 1', '%1 2', 1)
    end
    if delay > 0 then
      redis.call('ZADD', DELAYED, NOW + delay, element)
    else
      local list = lists[priority]
      list[#list + 1] = element
    end
  end
end
for p = 1, 3 do put(PENDING[p], lists[p]) end
for brand, its in pairs(taken) do add_to_share(brand, its[1], its[2]) end
if added > 0 then wake() end
count('enqueued', added)
count('duplicates', duplicates)
count('conflicts', conflicts)
return answer
