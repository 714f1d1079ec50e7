-- Pauses or resumes. ARGV: 4 '1' to pause, '0' to resume.
if ARGV[4] == '1' then
  redis.call('SET', PAUSED, NOW .. ' ' .. BY)
else
  redis.call('DEL', PAUSED)
  wake()
end
return 1
