-- control: put entries of one kind into the control partition
-- KEYS   1 facts (m) · 2 events (e) · 3 the kind's hash · 4 remembered answer
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3 kind · 4 expected version of the kind ('' = whatever it is) · 5 body digest ·
--        6 actor · 7 events carry values (0|1) · 8.. field, value, field, value …
-- RETURN {'A', version} put now · {'R', version} remembered · {'X'} request id reused with another body · {'V', version}
--        the kind has another version than expected
--
-- One version counts every change, one per kind says which part of a process' copy is out of date.

redis.call('EXISTS', unpack(KEYS))
local kept = redis.call('GET', KEYS[4])
if kept then
  if kept:sub(1, 8) ~= ARGV[5] then return { 'X' } end
  return { 'R', kept:sub(9) }
end
local facts = redis.call('HMGET', KEYS[1], 'version', ARGV[3], 'last_seen')
if not facts[1] then
  return redis.error_reply('PGMETA there is no deployment in this store')
end
local caller = tonumber(ARGV[1])
local now = math.max(caller, tonumber(facts[3]))
if ARGV[2] == '1' then
  local clock = redis.call('TIME')
  local server = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
  if math.max(now - server, server - caller) > LIMIT.CLOCK_SKEW_MS_MAX then
    return redis.error_reply(string.format('PGCLOCK caller %.0f last_seen %s server %.0f', caller, facts[3], server))
  end
end
if ARGV[4] ~= '' and ARGV[4] ~= (facts[2] or '0') then return { 'V', facts[2] or '0' } end

local version = string.format('%.0f', tonumber(facts[1]) + 1)
local event = { 'at', string.format('%.0f', now), 'kind', ARGV[3], 'version', version, 'actor', ARGV[6] }
if ARGV[7] == '1' then
  for n = 8, #ARGV do event[#event + 1] = ARGV[n] end
end
redis.call('XADD', KEYS[2], version .. '-0', unpack(event))
redis.call('HSET', KEYS[3], unpack(ARGV, 8))
redis.call('HSET', KEYS[1], 'version', version, ARGV[3], version, 'last_seen', string.format('%.0f', now))
redis.call('SET', KEYS[4], ARGV[5] .. version, 'EX', LIMIT.STOCK_ANSWER_TTL_S)
return { 'A', version }
