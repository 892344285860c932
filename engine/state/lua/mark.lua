-- mark: note up to which event the ledger has a partition's events, and drop those that nobody needs any more
-- KEYS   1 facts (m) · 2 events (e)
-- ARGV   1 now_ms · 2 clock compared (0|1), not looked at: the ledger goes on whatever the time · 3 id of the last event that
--        the ledger has · 4 id of the oldest event to keep, '' for all · 5 how many events stay in any case
-- RETURN 1
--
-- The mark is the position of a consumer group, so that whoever watches a store's streams (XINFO GROUPS) sees the ledger's
-- place too. Nothing is read through the group: what was read is the ledger's to say.

redis.call('EXISTS', unpack(KEYS))
local set = redis.pcall('XGROUP', 'SETID', KEYS[2], 'ledger', ARGV[3])
if type(set) == 'table' and set.err then
  redis.call('XGROUP', 'CREATE', KEYS[2], 'ledger', ARGV[3])
end
-- Whole nodes of the stream only ('~'): a few entries more may stay.
if ARGV[4] ~= '' and redis.call('XLEN', KEYS[2]) > tonumber(ARGV[5]) then
  redis.call('XTRIM', KEYS[2], 'MINID', '~', ARGV[4])
end
return 1
