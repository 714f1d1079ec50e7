-- What every step begins with: the queue's keys by name, the time, and how an item is read, noted, ended and buried.
-- Then comes a layout (lists.lua or streams.lua), then the step. Rules for all: check everything before the first write,
-- never raise after it, cap every loop, never unpack a long table.
-- KEYS: 1-3 pending and 4-6 released by priority, 7 suspects, 8 wake, 9 delayed, 10 leases, 11 dead, 12 letters,
--       13 stats, 14 paused, 15 what brands hold, 16 what they have of dead letters
-- ARGV: 1 what keys made here begin with (it holds the same hash tag), 2 this process, 3 empty, or the time in ms (tests)
local PENDING, FRONT = {KEYS[1], KEYS[2], KEYS[3]}, {KEYS[4], KEYS[5], KEYS[6]}
local SUSPECT, WAKE, DELAYED, LEASES = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local DEAD, LETTERS, STATS, PAUSED = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local SHARES, DEAD_SHARES = KEYS[15], KEYS[16]
local PLACES = {SUSPECT, FRONT[1], PENDING[1], FRONT[2], PENDING[2], FRONT[3], PENDING[3]}
local TAG, BY, NOW = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not NOW then
  local t = redis.call('TIME')
  NOW = t[1] * 1000 + math.floor(t[2] / 1000)
end
local PIECE = 500

-- A Redis without memory refuses a script's first command that needs some, and lets the rest of a script pass that has
-- begun to write. Steps that free memory in the end begin with this, so that a full queue can be drained.
local function begin() redis.call('DEL', TAG .. ':none') end

-- An element as a table; nil when it is none of ours. The payload is never looked at.
local function read(element)
  local id, at, attempt, suspect, losses, priority, claims, brand, history, body =
    string.match(element, '^(%S+) (%d+) (%d+) ([01]) (%d+) ([012]) (%S+) ?(%d*)\n([^\n]*)\n()')
  if not id then return nil end
  return {id = id, at = at, attempt = attempt, suspect = suspect, losses = tonumber(losses),
    priority = tonumber(priority), claims = claims, brand = brand == '' and '0' or brand, history = history, payload = string.sub(element, body)}
end

local function write(item)
  return item.id .. ' ' .. item.at .. ' ' .. item.attempt .. ' ' .. item.suspect .. ' ' .. item.losses .. ' '
    .. item.priority .. ' ' .. item.claims .. ' ' .. item.brand .. '\n' .. item.history .. '\n' .. item.payload
end

-- Adds to an item's history; `error` is a JSON string.
local function note(item, error)
  local entry = '{"at_ms":' .. NOW .. ',"error":' .. error .. '}'
  item.history = item.history == '' and entry or item.history .. ',' .. entry
end

local function count(name, by)
  if by > 0 then redis.call('HINCRBY', STATS, name, by) end
end

-- Adds to what a brand holds, and to what all of them do: fields `<brand>` and `<brand>:b`, `all` and `all:b`.
local function add_to_share(brand, items, bytes)
  if items == 0 then return end
  redis.call('HINCRBY', SHARES, brand, items) -- guard: share
  redis.call('HINCRBY', SHARES, brand .. ':b', bytes)
  redis.call('HINCRBY', SHARES, 'all', items)
  redis.call('HINCRBY', SHARES, 'all:b', bytes)
end

-- A marker carries no work: losing one costs a poll, never an item.
local function wake()
  if redis.call('LLEN', WAKE) < 16 then redis.call('LPUSH', WAKE, '1') end
end

-- How long the outbox's own key is remembered while its item is in the queue, and after it has ended.
local STAGED_KEPT, STAGED_TTL = 2592000000, 3600000

-- Writes how an item ended beside its claims, where they are still its own.
local function finish(id, claims, outcome)
  if claims == '-' then return end
  for name in string.gmatch(claims, '[^,]+') do
    local key = TAG .. ':claim:' .. name
    local first, owner = string.match(redis.call('GET', key) or '', '^(%S+ (%S+) %d+ %d+)')
    if owner == id then
      local ended = first .. '\n' .. NOW .. ' ' .. outcome .. ' ' .. BY
      if string.sub(name, 1, 7) == 'outbox:' then
        redis.call('SET', key, ended, 'PX', STAGED_TTL)
      else
        redis.call('SET', key, ended, 'KEEPTTL')
      end
    end
  end
end

-- How many items wait in a place, and how elements are put into one: the layout says.
local waiting, put

local function waiting_in_all()
  local items = 0
  for _, place in ipairs(PLACES) do items = items + waiting(place) end
  return items
end

-- A brand's dead letters by the time of their burial.
local function dead_of(brand) return DEAD .. ':' .. brand end

local function add_to_dead(brand, letters, bytes)
  redis.call('HINCRBY', DEAD_SHARES, brand, letters)
  redis.call('HINCRBY', DEAD_SHARES, brand .. ':b', bytes)
end

-- Takes a dead letter out; nil where there is none of that id.
local function exhume(id)
  local element = redis.call('HGET', LETTERS, id) or ''
  local item = read(element)
  if item then
    redis.call('HDEL', LETTERS, id)
    redis.call('ZREM', DEAD, id)
    if redis.call('ZREM', dead_of(item.brand), id) == 1 then add_to_dead(item.brand, -1, -#element) end
  end
  return item
end

-- Drops the oldest dead letter of a brand. Its index may name one that is gone.
local function drop(brand)
  local id = redis.call('ZRANGE', dead_of(brand), 0, 0)[1]
  if not id then return end
  local item = exhume(id)
  if item then finish(id, item.claims, 'discarded') else redis.call('ZREM', dead_of(brand), id) end
  count('dropped', 1)
end

-- `most` and `most_bytes` are a brand's bounds: the oldest letters go, and never the newest.
-- Losses that an item suffered alone: batch -> '0', or '1' where the worker that had it has come back; `buried` where it was buried for
-- them. And the item of a batch. Both are kept for a day.
local LOSSES_TTL = 86400000
local function losses_of(id) return TAG .. ':losses:' .. id end
local function lone(batch) return TAG .. ':lone:' .. batch end

-- Answers how many losses count against an item, and how many it suffered in all.
local function losses(id)
  local key, count = losses_of(id), 0
  local values = redis.call('HVALS', key)
  for _, survived in ipairs(values) do
    if survived == '0' then count = count + 1 end
  end
  return count, #values
end

local function lose(id, batch)
  redis.call('SET', lone(batch), id, 'PX', LOSSES_TTL)
  redis.call('HSET', losses_of(id), batch, '0')
  redis.call('PEXPIRE', losses_of(id), LOSSES_TTL)
  return losses(id)
end

-- Whoever asks for a batch after it was lost lives: the loss was the worker's, and counts no more against the item. An item that was buried
-- for it comes back. `said` is what its history says of that, as a JSON string.
local function survived(batch, said)
  local id = redis.call('GET', lone(batch))
  if not id then return end
  redis.call('DEL', lone(batch))
  local key = losses_of(id)
  if redis.call('HGET', key, batch) ~= '0' then return end
  redis.call('HSET', key, batch, '1') -- guard: survived
  if redis.call('HDEL', key, 'buried') == 0 then return end
  local item = exhume(id)
  if not item then return end
  item.losses = losses(id)
  note(item, said)
  put(SUSPECT, {write(item)})
  add_to_share(item.brand, 1, #item.payload)
  wake()
end

local function bury(item, element, most, most_bytes)
  redis.call('ZADD', DEAD, NOW, item.id)
  redis.call('HSET', LETTERS, item.id, element)
  redis.call('ZADD', dead_of(item.brand), NOW, item.id)
  add_to_dead(item.brand, 1, #element)
  finish(item.id, item.claims, 'dead')
  for _ = 1, PIECE do
    local held = redis.call('HMGET', DEAD_SHARES, item.brand, item.brand .. ':b')
    local letters, bytes = tonumber(held[1]), tonumber(held[2])
    if letters <= 1 or (letters <= most and bytes <= most_bytes) then break end -- guard: letters
    drop(item.brand)
  end
end

