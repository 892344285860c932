-- redeem: one try to redeem a code
-- KEYS   code (hash), stock of mall and store (hash), remembered answer (hash), events (stream), attempts (stream), expiries (zset)
-- ARGV   now_ms, body digest, uid, mall, store, terminal, request id, stale (0|1), verdict of the place (0: nothing against it),
--        wanted lines as JSON ([[sku, count], ...]; []: all that is left), afterlife in seconds, actor, distance bucket
-- RETURN {'REUSED'} | {'AGAIN' or 'NOW', answer as JSON}

local REDEEMED, ALREADY_REDEEMED, EXPIRED, VOIDED, STALE, UNKNOWN, WRONG_STORE, OUT_OF_STOCK, NOTHING_LEFT = 1, 2, 3, 4, 5, 7, 8, 15, 17

local remembered = redis.call('HMGET', KEYS[3], 'body', 'answer')
if remembered[1] then
  if remembered[1] ~= ARGV[2] then return { 'REUSED' } end
  return { 'AGAIN', remembered[2] }
end

local now = tonumber(ARGV[1])
local record = redis.call('HMGET', KEYS[1], 'state', 'store', 'order', 'lines', 'expires_at_ms', 'redeemed_at_ms', 'terminal', 'mall')
local state, store, order, lines = record[1], record[2], record[3], record[4]

local function refuse(verdict, facts)
  facts = facts or {}
  facts.verdict, facts.order, facts.store = verdict, order or '', tonumber(store or 0)
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'uid', ARGV[3], 'terminal', ARGV[6], 'store', ARGV[5],
    'request', ARGV[7], 'verdict', verdict, 'at_ms', ARGV[1])
  return { 'NOW', cjson.encode(facts) }
end

if not state or record[8] ~= ARGV[4] then return refuse(UNKNOWN) end
if state == 'redeemed' then
  return refuse(ALREADY_REDEEMED, { at_ms = tonumber(record[6]), terminal = tonumber(record[7]) })
end
if state == 'voided' then return refuse(VOIDED) end
if state == 'expired' or tonumber(record[5]) <= now then return refuse(EXPIRED) end
if ARGV[8] == '1' then return refuse(STALE) end
if store ~= ARGV[5] then return refuse(WRONG_STORE) end
if ARGV[9] ~= '0' then return refuse(tonumber(ARGV[9])) end

lines = cjson.decode(lines)
local wanted = cjson.decode(ARGV[10])
local taken, left = {}, 0
for n, line in ipairs(lines) do
  local count = line[3]
  if #wanted > 0 then
    count = 0
    for _, want in ipairs(wanted) do
      if want[1] == line[1] then count = want[2] end
    end
  end
  if count > line[3] then return refuse(NOTHING_LEFT, { sku = line[1] }) end
  if count > 0 then taken[#taken + 1] = { n, line[1], count } end
  left = left + line[3] - count
end
for _, want in ipairs(wanted) do
  local found = false
  for _, take in ipairs(taken) do
    if take[2] == want[1] then found = true end
  end
  if not found then return refuse(NOTHING_LEFT, { sku = want[1] }) end
end
for _, take in ipairs(taken) do
  if tonumber(redis.call('HGET', KEYS[2], 'on_hand:' .. take[2]) or 0) < take[3] then
    return refuse(OUT_OF_STOCK, { sku = take[2] })
  end
end

local told = {}
for n, take in ipairs(taken) do
  local line = lines[take[1]]
  line[3] = line[3] - take[3]
  redis.call('HINCRBY', KEYS[2], 'on_hand:' .. take[2], -take[3])
  redis.call('HINCRBY', KEYS[2], 'reserved:' .. take[2], -take[3])
  told[n] = { take[2], take[3], line[3] }
end
local ended = left == 0
redis.call('HSET', KEYS[1], 'state', ended and 'redeemed' or 'partly', 'lines', cjson.encode(lines), 'redeemed_at_ms', ARGV[1],
  'terminal', ARGV[6])
if ended then
  redis.call('EXPIRE', KEYS[1], ARGV[11])
  redis.call('ZREM', KEYS[6], ARGV[3])
end
local event = redis.call('XADD', KEYS[4], '*', 'type', 'redeemed', 'uid', ARGV[3], 'mall', ARGV[4], 'store', ARGV[5],
  'terminal', ARGV[6], 'request', ARGV[7], 'lines', cjson.encode(told), 'state', ended and 'redeemed' or 'partly',
  'at_ms', ARGV[1], 'actor', ARGV[12], 'bucket', ARGV[13])
local answer = cjson.encode({ verdict = REDEEMED, order = order, at_ms = now, terminal = tonumber(ARGV[6]), lines = told, event = event })
redis.call('HSET', KEYS[3], 'body', ARGV[2], 'answer', answer)
redis.call('EXPIRE', KEYS[3], ARGV[11])
return { 'NOW', answer }
