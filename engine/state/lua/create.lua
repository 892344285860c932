-- create: enter a deployment into the control partition, unless there is one
-- KEYS   1 facts (m) · 2 events (e) · 3 keyring
-- ARGV   1 now_ms · 2 clock compared (0|1), not looked at: there is no time to compare yet · 3 constants (JSON) · 4 keyring blob
-- RETURN 1 entered · 0 there is a deployment already

redis.call('EXISTS', unpack(KEYS))
if redis.call('HEXISTS', KEYS[1], 'constants') == 1 then return 0 end
redis.call('XADD', KEYS[2], '1-0', 'kind', 'created', 'at', ARGV[1])
redis.call('HSET', KEYS[3], 'blob', ARGV[4])
redis.call('HSET', KEYS[1], 'constants', ARGV[3], 'version', '1', 'keyring', '1', 'last_seen', '0')
return 1
