-- swept: note up to which minute a partition's due index is done
-- KEYS   1 to 6 the partition's own
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3 minute since 1970
-- RETURN the minute noted, as a decimal string
--
-- A script, so that a process whose clock is wrong can't step over minutes that have not come yet: nothing in them would ever
-- be looked at. A minute ahead of the time, left by whatever, is taken back.

local failed = begin()
if failed then return failed end

local minute = math.min(tonumber(ARGV[3]), floor(now / 60000))
local noted = string.format('%.0f', minute)
redis.call('HSET', KEYS[1], 'swept', noted)
return noted
