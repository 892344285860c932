-- snapshot: read keys of a partition together with the number of its last event
-- KEYS   1 facts (m) · 2 events (e) · 3.. hashes and sorted sets to read
-- ARGV   1 now_ms · 2 clock compared (0|1), not looked at: nothing is decided
-- RETURN {epoch, seq, contents of KEYS 3, of KEYS 4 …}, each flat: field, value, field, value … (of a sorted set member, score …);
--        error PGMETA when the partition is not there
--
-- What one script reads, nothing changes meanwhile: so it is exactly what the events up to that number add up to.

redis.call('EXISTS', unpack(KEYS))
local facts = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
if not facts[1] then
  return redis.error_reply('PGMETA the partition is not initialised in this store')
end
local found = { facts[1], facts[2] }
for n = 3, #KEYS do
  if redis.call('TYPE', KEYS[n]).ok == 'zset' then
    found[n] = redis.call('ZRANGE', KEYS[n], 0, -1, 'WITHSCORES')
  else
    found[n] = redis.call('HGETALL', KEYS[n])
  end
end
return found
