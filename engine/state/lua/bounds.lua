-- bounds: keep what policies say of the tiers of stock where the scripts of a partition find it
-- KEYS   1 to 6 the partition's own
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3 version of the policies · 4.. scope, TIERS, scope, TIERS …
-- RETURN 1 kept · 0 these or newer ones are kept already
--
-- A copy of the control partition's truth, so it has no event; every process that sees a new version brings it, and the newest
-- stays. A tier is judged by the bounds in force whenever its SKU's figures change.

local failed = begin()
if failed then return failed end

local kept = redis.call('HGET', KEYS[6], 'version')
if kept and tonumber(kept) >= tonumber(ARGV[3]) then return 0 end
redis.call('DEL', KEYS[6])
redis.call('HSET', KEYS[6], 'version', ARGV[3])
for n = 4, #ARGV, 2 do redis.call('HSET', KEYS[6], ARGV[n], ARGV[n + 1]) end
return 1
