-- open: greet the server behind a partition; make the partition when the deployment is created
-- KEYS   1 facts (m) · 2 events (e)
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3 run_id of the server · 4 create (0|1)
-- RETURN epoch, as a decimal string; error PGMETA when the partition is not there and is not to be created
--
-- A server with another run_id than last time (a restart, a promoted replica) starts a new epoch, so that event numbers given
-- by a server whose last writes were lost can never be given a second time with another meaning.

local run_id = ARGV[3]
if redis.call('EXISTS', KEYS[1]) == 0 then
  if ARGV[4] ~= '1' then
    return redis.error_reply('PGMETA the partition is not initialised in this store')
  end
  redis.call('HSET', KEYS[1], 'epoch', '1', 'seq', '0', 'last_seen', '0', 'run_id', run_id)
  return '1'
end
local facts = redis.call('HMGET', KEYS[1], 'epoch', 'run_id')
if facts[2] == run_id then return facts[1] end

local failed = begin()
if failed then return failed end
epoch, seq = epoch + 1, 0
emit(EVENT_TYPE.EPOCH, 0, 0, NOBODY, 0, NOTHING, NOBODY, '', run_id)
commit()
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch), 'run_id', run_id)
return string.format('%.0f', epoch)
