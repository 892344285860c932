-- seen: note when terminals were last seen
-- KEYS   1 sightings
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. terminal, unix second, terminal, unix second …
-- RETURN 1 noted
--
-- Nothing is decided by it, so it has no event and no clock of its own; the later of two servers' words stays.

redis.call('EXISTS', KEYS[1])
for n = 3, #ARGV, 2 do
  local kept = redis.call('HGET', KEYS[1], ARGV[n])
  if not kept or tonumber(kept) < tonumber(ARGV[n + 1]) then redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1]) end
end
return 1
