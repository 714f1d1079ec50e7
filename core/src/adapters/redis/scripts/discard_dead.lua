-- Discards dead letters. ARGV: 4.. ids. Answers how many were there.
begin()
local discarded = 0
for i = 4, #ARGV do
  local item = exhume(ARGV[i])
  if item then
    finish(item.id, item.claims, 'discarded')
    discarded = discarded + 1
  end
end
count('discarded', discarded)
return discarded
