-- What every step begins with: the queue's keys by name, the time, and how an item is read, noted, ended and buried.
-- Then comes a layout (lists.lua or streams.lua), then the step. Rules for all: check everything before the first write,
-- never raise after it, cap every loop, never unpack a long table.
-- KEYS: 1-3 pending and 4-6 released by priority, 7 suspects, 8 wake, 9 delayed, 10 leases, 11 dead, 12 letters,
--       13 stats, 14 paused
-- ARGV: 1 what keys made here begin with (it holds the same hash tag), 2 this process, 3 empty, or the time in ms (tests)
local PENDING, FRONT = {KEYS[1], KEYS[2], KEYS[3]}, {KEYS[4], KEYS[5], KEYS[6]}
local SUSPECT, WAKE, DELAYED, LEASES = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local DEAD, LETTERS, STATS, PAUSED = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local PLACES = {SUSPECT, FRONT[1], PENDING[1], FRONT[2], PENDING[2], FRONT[3], PENDING[3]}
local TAG, BY, NOW = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not NOW then
  local t = redis.call('TIME')
  NOW = t[1] * 1000 + math.floor(t[2] / 1000)
end
local PIECE = 500

-- A Redis without memory refuses a script's first command that needs some, and lets the rest of a script pass that has
-- begun to write. Steps that free memory in the end begin with this, so that a full queue can be worked off.
local function begin() redis.call('DEL', TAG .. ':none') end

-- An element as a table; nil when it is none of ours. The payload is never looked at.
local function read(element)
  local id, at, attempt, suspect, losses, priority, claims, history, body =
    string.match(element, '^(%S+) (%d+) (%d+) ([01]) (%d+) ([012]) (%S+)\n([^\n]*)\n()')
  if not id then return nil end
  return {id = id, at = at, attempt = attempt, suspect = suspect, losses = tonumber(losses),
    priority = tonumber(priority), claims = claims, history = history, payload = string.sub(element, body)}
end

local function write(item)
  return item.id .. ' ' .. item.at .. ' ' .. item.attempt .. ' ' .. item.suspect .. ' ' .. item.losses .. ' '
    .. item.priority .. ' ' .. item.claims .. '\n' .. item.history .. '\n' .. item.payload
end

-- Adds to an item's history; `error` is a JSON string.
local function note(item, error)
  local entry = '{"at_ms":' .. NOW .. ',"error":' .. error .. '}'
  item.history = item.history == '' and entry or item.history .. ',' .. entry
end

local function count(name, by)
  if by > 0 then redis.call('HINCRBY', STATS, name, by) end
end

-- A marker carries no work: losing one costs a poll, never an item.
local function wake()
  if redis.call('LLEN', WAKE) < 16 then redis.call('LPUSH', WAKE, '1') end
end

-- Writes how an item ended beside its claims, where they are still its own.
local function finish(id, claims, outcome)
  if claims == '-' then return end
  for name in string.gmatch(claims, '[^,]+') do
    local key = TAG .. ':claim:' .. name
    local first, owner = string.match(redis.call('GET', key) or '', '^(%S+ (%S+) %d+ %d+)')
    if owner == id then
      redis.call('SET', key, first .. '\n' .. NOW .. ' ' .. outcome .. ' ' .. BY, 'KEEPTTL')
    end
  end
end

-- How many items wait in a place: the layout says.
local waiting

local function waiting_in_all()
  local items = 0
  for _, place in ipairs(PLACES) do items = items + waiting(place) end
  return items
end

-- Takes a dead letter out; nil where there is none of that id.
local function exhume(id)
  local item = read(redis.call('HGET', LETTERS, id) or '')
  if item then
    redis.call('HDEL', LETTERS, id)
    redis.call('ZREM', DEAD, id)
  end
  return item
end

local function bury(id, claims, element)
  redis.call('ZADD', DEAD, NOW, id)
  redis.call('HSET', LETTERS, id, element)
  finish(id, claims, 'dead')
end

