-- expire: one code whose time is over gives its stock back
-- KEYS   code (hash), stock of mall and store (hash), events (stream), expiries (zset)
-- ARGV   now_ms, uid, afterlife in seconds
-- RETURN 1 if it expired now, 0 if there was nothing to do

local record = redis.call('HMGET', KEYS[1], 'state', 'expires_at_ms', 'lines', 'mall', 'store')
redis.call('ZREM', KEYS[4], ARGV[2])
if record[1] ~= 'live' and record[1] ~= 'partly' or tonumber(record[2]) > tonumber(ARGV[1]) then return 0 end
for _, line in ipairs(cjson.decode(record[3])) do
  redis.call('HINCRBY', KEYS[2], 'reserved:' .. line[1], -line[3])
end
redis.call('HSET', KEYS[1], 'state', 'expired')
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('XADD', KEYS[3], '*', 'type', 'expired', 'uid', ARGV[2], 'mall', record[4], 'store', record[5], 'lines', record[3],
  'at_ms', ARGV[1])
return 1
