-- issue: one code, its stock reserved
-- KEYS   code (hash), stock of mall and store (hash), remembered answer (hash), events (stream), expiries (zset)
-- ARGV   now_ms, body digest, uid, mall, store, order id, lines as JSON ([[sku, count], ...]), expires_at_ms, request id,
--        channel, amount_fen, actor, how long the answer is remembered in seconds
-- RETURN {'REUSED'} | {'TAKEN'} (another uid, please) | {'AGAIN' or 'NOW', answer as JSON}

local ISSUED, STOCK_SHORT = 1, 2

local remembered = redis.call('HMGET', KEYS[3], 'body', 'answer')
if remembered[1] then
  if remembered[1] ~= ARGV[2] then return { 'REUSED' } end
  return { 'AGAIN', remembered[2] }
end
if redis.call('EXISTS', KEYS[1]) == 1 then return { 'TAKEN' } end

local lines = cjson.decode(ARGV[7])
for _, line in ipairs(lines) do
  local figures = redis.call('HMGET', KEYS[2], 'on_hand:' .. line[1], 'reserved:' .. line[1])
  if tonumber(figures[1] or 0) - tonumber(figures[2] or 0) < line[2] then
    return { 'NOW', cjson.encode({ verdict = STOCK_SHORT, sku = line[1] }) }
  end
end
local kept = {}
for n, line in ipairs(lines) do
  redis.call('HINCRBY', KEYS[2], 'reserved:' .. line[1], line[2])
  kept[n] = { line[1], line[2], line[2] }
end
redis.call('HSET', KEYS[1], 'state', 'live', 'mall', ARGV[4], 'store', ARGV[5], 'order', ARGV[6], 'lines', cjson.encode(kept),
  'issued_at_ms', ARGV[1], 'expires_at_ms', ARGV[8], 'channel', ARGV[10], 'amount_fen', ARGV[11])
redis.call('ZADD', KEYS[5], ARGV[8], ARGV[3])
local event = redis.call('XADD', KEYS[4], '*', 'type', 'issued', 'uid', ARGV[3], 'mall', ARGV[4], 'store', ARGV[5],
  'order', ARGV[6], 'lines', ARGV[7], 'request', ARGV[9], 'expires_at_ms', ARGV[8], 'at_ms', ARGV[1], 'actor', ARGV[12])
local answer = cjson.encode({ verdict = ISSUED, uid = ARGV[3], issued_at_ms = tonumber(ARGV[1]), expires_at_ms = tonumber(ARGV[8]), event = event })
redis.call('HSET', KEYS[3], 'body', ARGV[2], 'answer', answer)
redis.call('EXPIRE', KEYS[3], ARGV[13])
return { 'NOW', answer }
