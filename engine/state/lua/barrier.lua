-- barrier: write something, so that whoever waits for replicas behind it waits for all that was written before it
-- KEYS   1 facts (m) · 2 events (e)
-- ARGV   1 now_ms · 2 clock compared (0|1), not looked at: nothing is decided here
-- RETURN 1; 0 when the partition is not there, and then nothing was written
--
-- WAIT and WAITAOF wait for what their own connection has written last. An answer that was remembered writes nothing, and the change
-- that it tells of may have been written on another connection, which waited in vain.

redis.call('EXISTS', unpack(KEYS))
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'waited', '1')
return 1
