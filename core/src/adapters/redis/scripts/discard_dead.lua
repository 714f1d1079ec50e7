-- Discards dead letters. ARGV: 4.. ids. Answers how many were there.
begin()
local discarded = 0
for i = 4, #ARGV do
  local item = read(redis.call('HGET', LETTERS, ARGV[i]) or '')
  if item then
    redis.call('HDEL', LETTERS, ARGV[i])
    redis.call('ZREM', DEAD, ARGV[i])
    finish(item.id, item.claims, 'discarded')
    discarded = discarded + 1
  end
end
count('discarded', discarded)
return discarded
