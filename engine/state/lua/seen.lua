-- seen: note when terminals were last seen
-- KEYS   1 facts (m) · 2 events (e) · 3 sightings
-- ARGV   1 now_ms · 2 clock compared (0|1), not looked at: nothing is decided by it · 3.. terminal, unix second, terminal, unix second …
-- RETURN 1 noted
--
-- It is no change of an entry, so it has no event; of what two servers say the later stays.

redis.call('EXISTS', unpack(KEYS))
if redis.call('HEXISTS', KEYS[1], 'version') == 0 then
  return redis.error_reply('PGMETA there is no deployment in this store')
end
for n = 3, #ARGV, 2 do
  local kept = redis.call('HGET', KEYS[3], ARGV[n])
  if not kept or tonumber(kept) < tonumber(ARGV[n + 1]) then redis.call('HSET', KEYS[3], ARGV[n], ARGV[n + 1]) end
end
return 1
