-- receive: units of one SKU came in
-- KEYS   stock of mall and store (hash), remembered answer (hash), events (stream)
-- ARGV   now_ms, body digest, mall, store, sku, count, request id, actor, how long the answer is remembered in seconds
-- RETURN {'REUSED'} | {'AGAIN' or 'NOW', answer as JSON}

local remembered = redis.call('HMGET', KEYS[2], 'body', 'answer')
if remembered[1] then
  if remembered[1] ~= ARGV[2] then return { 'REUSED' } end
  return { 'AGAIN', remembered[2] }
end
local on_hand = redis.call('HINCRBY', KEYS[1], 'on_hand:' .. ARGV[5], ARGV[6])
local reserved = tonumber(redis.call('HGET', KEYS[1], 'reserved:' .. ARGV[5]) or 0)
local event = redis.call('XADD', KEYS[3], '*', 'type', 'received', 'mall', ARGV[3], 'store', ARGV[4], 'sku', ARGV[5],
  'count', ARGV[6], 'request', ARGV[7], 'at_ms', ARGV[1], 'actor', ARGV[8])
local answer = cjson.encode({ on_hand = on_hand, reserved = reserved, event = event })
redis.call('HSET', KEYS[2], 'body', ARGV[2], 'answer', answer)
redis.call('EXPIRE', KEYS[2], ARGV[9])
return { 'NOW', answer }
