-- Shared by every script of a partition; the loader puts it, behind the constants, in front of each verb.
--
-- The pattern of every verb: read and decide item by item against an overlay (`look`, `place`), so that later items of a
-- batch see what earlier ones did; then `commit` writes everything at once. Lua has no rollback, so nothing is written
-- before everything is decided, and every declared key is touched before the first write.
--
-- KEYS 1 to 6 are the partition's own: its facts (m), event stream (e), refused attempts (a), evidence of counted tries (v),
-- open reviews (w) and bounds of tiers (b). ARGV 1 is now_ms, ARGV 2 is '1' when the caller's clock
-- is to be compared with the server's.

local pack, unpack_fields, floor, call = struct.pack, struct.unpack, math.floor, redis.call
local char = string.char

local NOBODY, NOTHING, NONE = string.rep('\0', 8), string.rep('\0', 12), {}
local overlay, written, places, lives, appended, events, reviews = {}, {}, {}, {}, {}, {}, {}
local epoch, seq, now

-- Read the partition's facts and settle the time. Returns an error reply, or nil when the batch may go on.
local function begin()
  redis.call('EXISTS', unpack(KEYS))
  local facts = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'last_seen')
  if not facts[1] then
    return redis.error_reply('PGMETA the partition is not initialised in this store')
  end
  epoch, seq = tonumber(facts[1]), tonumber(facts[2])
  local last_seen = tonumber(facts[3])
  local caller = tonumber(ARGV[1])
  now = math.max(caller, last_seen)
  if ARGV[2] == '1' then
    -- The caller's own clock too, not only the later of both: it has judged the payload's age and set the expiry by it.
    local clock = redis.call('TIME')
    local server = tonumber(clock[1]) * 1000 + floor(tonumber(clock[2]) / 1000)
    if math.max(now - server, server - caller) > LIMIT.CLOCK_SKEW_MS_MAX then
      return redis.error_reply(string.format('PGCLOCK caller %.0f last_seen %.0f server %.0f',
        caller, last_seen, server))
    end
  end
  return nil
end

-- Value of a hash field as this batch sees it, false when there is none; and what `place` may be given as its id.
--
-- One table for all, by key and field in one string (keys of hashes have no zero byte): a table for each key would be made,
-- grown and freed for each item.
local function look(key, field)
  local id = key .. '\0' .. field
  local value = overlay[id]
  if value == nil then
    value = call('HGET', key, field)
    overlay[id] = value
  end
  return value, id
end

-- Set a hash field at commit (false: delete it). The field was looked at before; id: what `look` gave, or nil.
local function place(key, field, value, id)
  id = id or key .. '\0' .. field
  overlay[id] = value
  if not written[id] then
    written[id] = true
    local n = #places
    places[n + 1], places[n + 2], places[n + 3] = key, field, id
  end
end

-- Remembered answer of a key with a lifetime, as this batch sees it; false when there is none.
local function recall(key)
  local kept = lives[key]
  if kept then return kept[1] end
  return redis.call('GET', key)
end

-- Remember an answer under a key with a lifetime, at commit.
local function remember(key, value, ttl_s)
  lives[key] = { value, ttl_s }
end

-- Enter a uid into a due index at commit.
local function fall_due(key, uid)
  appended[key] = (appended[key] or '') .. uid
end

-- Number and queue one event; returns its sequence number.
local function emit(type, mall, store, uid, terminal, request, body, actor, rest)
  seq = seq + 1
  events[#events + 1] = pack(EVENT, 1, type, now, mall, store, uid, terminal, request, body, #actor) .. actor .. rest
  return seq
end

-- Write all that was decided. One event per change; only forgetting, which an earlier event announced, has none.
local function commit()
  local before, prefix = seq - #events, epoch .. '-'
  -- Numbers below 10^14 are written in full; 64 bits of events would take longer than a deployment lives.
  for n = 1, #events do
    call('XADD', KEYS[2], prefix .. before + n, 'e', events[n])
  end
  if #events > 0 then
    call('HSET', KEYS[1], 'seq', seq, 'last_seen', now)
  end
  for n = 1, #places, 3 do
    local value = overlay[places[n + 2]]
    if value then
      call('HSET', places[n], places[n + 1], value)
    else
      call('HDEL', places[n], places[n + 1])
    end
  end
  for key, uids in pairs(appended) do
    call('APPEND', key, uids)
  end
  for key, kept in pairs(lives) do
    call('SET', key, kept[1], 'EX', kept[2])
  end
  for uid, at in pairs(reviews) do
    if at then
      call('ZADD', KEYS[5], at, uid)
    else
      call('ZREM', KEYS[5], uid)
    end
  end
end

-- A record as a table. The fields of RECORD are its array (r[R.state]): with a name each, the table would be two kilobytes of
-- hash that are made, grown and freed for each item. What stands behind them has names: lines, bundles, requests, and the tail
-- that no verb changes (order id, split, the uid that it replaces).
local function read_record(bytes)
  local r = { lines = NONE, bundles = NONE, requests = '', tail = '', unpack_fields(RECORD, bytes) }
  local at = r[R.behind]
  local lines = {}
  for n = 1, r[R.n_lines] do
    local sku, count, left
    sku, count, left, at = unpack_fields(LINE, bytes, at)
    lines[n] = { sku = sku, count = count, left = left }
  end
  r.lines = lines
  if r[R.n_bundles] > 0 then
    local bundles = {}
    for n = 1, r[R.n_bundles] do
      local sku, units, first, count
      sku, units, first, count, at = unpack_fields(BUNDLE, bytes, at)
      bundles[n] = { sku = sku, units = units, first = first, n = count }
    end
    r.bundles = bundles
  end
  local tail_at = at + 12 * r[R.n_requests]
  r.requests, r.tail = bytes:sub(at, tail_at - 1), bytes:sub(tail_at)
  return r
end

-- Order id of a record.
local function order_of(r)
  return r.tail:sub(1, r[R.order_len])
end

local function write_lines(lines)
  local bytes = ''
  for n = 1, #lines do
    local line = lines[n]
    bytes = bytes .. pack(LINE, line.sku, line.count, line.left)
  end
  return bytes
end

-- Which lines of the record were moved, one byte each: two lines may name one SKU, so the SKU alone doesn't say it.
local function write_places(taken)
  local bytes = ''
  for n = 1, #taken do bytes = bytes .. char(taken[n].n) end
  return bytes
end

local function write_bundles(bundles)
  local bytes = ''
  for n = 1, #bundles do
    local bundle = bundles[n]
    bytes = bytes .. pack(BUNDLE, bundle.sku, bundle.units, bundle.first, bundle.n)
  end
  return bytes
end

local function write_record(r)
  r[R.n_requests] = #r.requests / 12
  return pack(RECORD, unpack(r, 1, R.split_len)) .. write_lines(r.lines) .. write_bundles(r.bundles) .. r.requests .. r.tail
end

-- The content that a payload shows has changed: renders from now on must not share a stamp with earlier ones. Until now the
-- largest stamp given was the first even second from max(now, floor) on (engine.issuance.now_stamp): the floor goes past it.
-- Changes faster than one a second push it ahead of the time; the payload's valid_from says when it will be taken.
local function touch(r)
  local given = math.max(floor(now / 1000), r[R.stamp_floor])
  r[R.stamp_floor] = given + given % 2 + 1
  r[R.changed] = now
  if r[R.revision] < 255 then r[R.revision] = r[R.revision] + 1 end
end

-- Stock figures of a SKU as a table; zeros when the store has never had it.
local function read_stock(key, sku)
  local bytes, id = look(key, sku)
  local on_hand, reserved, baseline, tier = 0, 0, 0, 0
  if bytes then on_hand, reserved, baseline, tier = unpack_fields(STOCK, bytes) end
  return { on_hand = on_hand, reserved = reserved, baseline = baseline, tier = tier, id = id }
end

-- Bounds of a SKU's tiers: as the policy of the SKU, of the store or of the deployment states them, else the built-in ones.
local BUILT_IN_BOUNDS = pack(TIERS, LIMIT.TIER_TIGHT_PERCENT, LIMIT.TIER_RED_PERCENT, LIMIT.TIER_CLOSED_PERCENT,
  LIMIT.TIER_EMERGENCY_PERCENT, LIMIT.TIER_HYSTERESIS_PERCENT)

local has_bounds

local function bounds_of(mall, store, sku)
  -- Most deployments have none: three names need not be written and looked for with each sale.
  if has_bounds == nil then has_bounds = call('EXISTS', KEYS[6]) == 1 end
  local bytes = has_bounds and (look(KEYS[6], string.format('sku:%.0f:%.0f', mall, sku))
    or look(KEYS[6], string.format('store:%.0f', store)) or look(KEYS[6], 'deployment')) or BUILT_IN_BOUNDS
  local b = {}
  b.tight, b.red, b.closed, b.emergency, b.hysteresis = unpack_fields(TIERS, bytes)
  return b
end

-- Tier of figures, judged with `slack` points less than there are.
local function tier_of(s, b, slack)
  local available = math.max(0, s.on_hand - s.reserved)
  local percent = available * 100 / s.baseline - slack
  if percent <= b.emergency then return TIER.EMERGENCY end
  if percent <= b.closed then return TIER.CLOSED end
  if percent <= b.red then return TIER.RED end
  if percent < b.tight then return TIER.TIGHT end
  return TIER.NORMAL
end

-- Set a SKU's figures at commit. A crossing of tiers, either way, is one event of its own; upwards only with some slack, so
-- that stock which wavers about a bound does not cross it at every sale.
local function write_stock(key, mall, store, sku, s)
  local tier = TIER.NORMAL
  if s.baseline > 0 then
    local bounds = bounds_of(mall, store, sku)
    tier = tier_of(s, bounds, 0)
    if tier < s.tier then tier = math.min(s.tier, tier_of(s, bounds, bounds.hysteresis)) end
  end
  if tier ~= s.tier then
    emit(EVENT_TYPE.TIER, mall, store, NOBODY, 0, NOTHING, NOBODY, '',
      pack('>I4BB', sku, s.tier, tier) .. pack(STOCK, s.on_hand, s.reserved, s.baseline, tier))
    s.tier = tier
  end
  place(key, sku, pack(STOCK, s.on_hand, s.reserved, s.baseline, s.tier), s.id)
end

-- Figures of one SKU of an item, each read once into `figures`, so that lines which share a SKU add up.
local function figures_of(figures, key, sku)
  local s = figures[sku]
  if not s then
    s = read_stock(key, sku)
    figures[sku] = s
  end
  return s
end

-- Write the figures that an item changed, in the order of SKUs.
local function write_figures(key, mall, store, figures)
  local first, s = next(figures)
  if not first then return end
  if not next(figures, first) then return write_stock(key, mall, store, first, s) end
  local skus = {}
  for sku in pairs(figures) do skus[#skus + 1] = sku end
  table.sort(skus)
  for _, sku in ipairs(skus) do write_stock(key, mall, store, sku, figures[sku]) end
end

-- A code's time is over from its expiry on, whether or not the sweep has come by: no answer may depend on when it comes.
local function is_over(r)
  return r[R.state] == STATE.EXPIRED or (r[R.state] < STATE.REDEEMED and r[R.exp] * 1000 <= now)
end

-- Give back what a code still reserves. Returns the lines that had something left, and the figures to be written.
local function release(r, stock_key)
  local figures, lines = {}, {}
  for _, line in ipairs(r.lines) do
    if line.left > 0 then
      local s = figures_of(figures, stock_key, line.sku)
      s.reserved = s.reserved - line.left
      lines[#lines + 1] = { sku = line.sku, count = line.count, left = line.left }
    end
  end
  return lines, figures
end

-- Burn one counted try of a code: the third locks it and opens its review. Returns the event's number and whether it locked.
local function burn_try(r, uid, store, terminal, request, body, actor, verdict, bucket)
  r[R.tries] = r[R.tries] + 1
  r.requests = r.requests .. request
  local evidence = look(KEYS[4], uid) or ''
  place(KEYS[4], uid, evidence .. pack(EVIDENCE, now, store, terminal, verdict, bucket, #actor) .. actor)
  local rest = pack('>BBB', r[R.tries], bucket, verdict)
  if r[R.tries] < LIMIT.TRIES_MAX then
    return emit(EVENT_TYPE.TRIED, r[R.mall], store, uid, terminal, request, body, actor, rest), false
  end
  local number = emit(EVENT_TYPE.LOCKED, r[R.mall], store, uid, terminal, request, body, actor, rest)
  r[R.state], r[R.lock_epoch], r[R.lock_seq] = STATE.LOCKED, epoch, number
  reviews[uid] = now
  return number, true
end

-- A code ends or is free again: its tries and its review are over.
local function close_review(r, uid)
  if r[R.tries] == 0 then return end
  r[R.tries], r[R.lock_epoch], r[R.lock_seq] = 0, 0, 0
  look(KEYS[4], uid)
  place(KEYS[4], uid, false)
  reviews[uid] = false
end

-- End a code. The due index is that of the minute in which it will be forgotten, named by the caller, who knows the time too.
local function end_record(r, state, due_key, uid)
  r[R.state] = state
  close_review(r, uid)
  touch(r)
  fall_due(due_key, uid)
end
