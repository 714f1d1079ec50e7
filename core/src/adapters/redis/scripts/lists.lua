-- The layout on lists: a place is a list, pushed left and popped right; a batch is a list of its own.
local function batch_key(id) return TAG .. ':batch:' .. id end

function put(place, elements)
  for from = 1, #elements, PIECE do
    redis.call('LPUSH', place, unpack(elements, from, math.min(from + PIECE - 1, #elements)))
  end
end

local function take(place, id, want)
  local taken = redis.call('RPOP', place, want) or {}
  for from = 1, #taken, PIECE do
    redis.call('RPUSH', batch_key(id), unpack(taken, from, math.min(from + PIECE - 1, #taken)))
  end
  return taken
end

function waiting(place) return redis.call('LLEN', place) end
local function oldest(place) return redis.call('LINDEX', place, -1) end
local function held(id) return redis.call('LRANGE', batch_key(id), 0, -1) end
local function count_held(id) return redis.call('LLEN', batch_key(id)) end
local function let_go(id) redis.call('UNLINK', batch_key(id)) end

local function in_flight()
  local items = 0
  for _, id in ipairs(redis.call('ZRANGE', LEASES, 0, 9999)) do items = items + count_held(id) end
  return items
end

