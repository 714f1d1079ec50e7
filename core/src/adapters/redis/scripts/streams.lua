-- The layout on streams: a place is a stream with one consumer group; a batch is a consumer of that name, and what it
-- holds is what is pending under it. An entry is acknowledged and deleted together, so a stream holds what waits and what
-- is in flight, and nothing is ever trimmed.
local GROUP = 'workers'
local MOST = 1000

function put(place, elements)
  for _, element in ipairs(elements) do redis.call('XADD', place, '*', 'e', element) end
end

-- Entries under a consumer, by id; none where there is no group yet.
local function pending_of(place, id)
  local found = redis.pcall('XPENDING', place, GROUP, '-', '+', MOST, id)
  return found.err and {} or found
end

local function delivered(place)
  local summary = redis.pcall('XPENDING', place, GROUP)
  return summary.err and 0 or summary[1]
end

function waiting(place) return redis.call('XLEN', place) - delivered(place) end

local function elements_of(entries)
  local elements = {}
  for i, entry in ipairs(entries) do elements[i] = entry[2][2] end
  return elements
end

local function take(place, id, want)
  -- A read that finds nothing would leave an empty consumer behind.
  if waiting(place) == 0 then return {} end
  local read = redis.pcall('XREADGROUP', 'GROUP', GROUP, id, 'COUNT', want, 'STREAMS', place, '>')
  if read and read.err then
    redis.call('XGROUP', 'CREATE', place, GROUP, '0', 'MKSTREAM')
    read = redis.call('XREADGROUP', 'GROUP', GROUP, id, 'COUNT', want, 'STREAMS', place, '>')
  end
  return read and elements_of(read[1][2]) or {}
end

local function oldest(place)
  local groups = redis.pcall('XINFO', 'GROUPS', place)
  local from = '-'
  if not groups.err and groups[1] then
    for i = 1, #groups[1], 2 do
      if groups[1][i] == 'last-delivered-id' then from = '(' .. groups[1][i + 1] end
    end
  end
  local entry = redis.call('XRANGE', place, from, '+', 'COUNT', 1)[1]
  return entry and entry[2][2]
end

-- Entries of one batch lie side by side, because each fetch reads on from the last: claiming as many as it has, from its
-- first, claims exactly its own.
local function held(id)
  local elements = {}
  for _, place in ipairs(PLACES) do
    local mine = pending_of(place, id)
    if #mine > 0 then
      local claimed = redis.call('XAUTOCLAIM', place, GROUP, id, 0, mine[1][1], 'COUNT', #mine)
      for _, element in ipairs(elements_of(claimed[2])) do elements[#elements + 1] = element end
    end
  end
  return elements
end

local function count_held(id)
  local items = 0
  for _, place in ipairs(PLACES) do items = items + #pending_of(place, id) end
  return items
end

local function let_go(id)
  for _, place in ipairs(PLACES) do
    local mine = pending_of(place, id)
    if #mine > 0 then
      local ids = {}
      for i, entry in ipairs(mine) do ids[i] = entry[1] end
      redis.call('XACK', place, GROUP, unpack(ids))
      redis.call('XDEL', place, unpack(ids))
      redis.call('XGROUP', 'DELCONSUMER', place, GROUP, id)
    end
  end
end

local function in_flight()
  local items = 0
  for _, place in ipairs(PLACES) do items = items + delivered(place) end
  return items
end

