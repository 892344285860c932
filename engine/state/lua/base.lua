-- Shared by every script of a partition; the loader puts it, behind the constants, in front of each verb.
--
-- The pattern of every verb: read and decide item by item against an overlay (`look`, `place`), so that later items of a
-- batch see what earlier ones did; then `commit` writes everything at once. Lua has no rollback, so nothing is written
-- before everything is decided, and every declared key is touched before the first write.
--
-- KEYS 1 is the partition's facts (m), KEYS 2 its event stream (e). ARGV 1 is now_ms, ARGV 2 is '1' when the caller's clock
-- is to be compared with the server's.

local pack, unpack_fields, floor = struct.pack, struct.unpack, math.floor

local overlay, changed, lives, appended, events = {}, {}, {}, {}, {}
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

-- Value of a hash field as this batch sees it; false when there is none.
local function look(key, field)
  local fields = overlay[key]
  if not fields then
    fields = {}
    overlay[key] = fields
  end
  local value = fields[field]
  if value == nil then
    value = redis.call('HGET', key, field)
    fields[field] = value
  end
  return value
end

-- Set a hash field at commit (false: delete it). The field was looked at before.
local function place(key, field, value)
  overlay[key][field] = value
  local fields = changed[key]
  if not fields then
    fields = {}
    changed[key] = fields
  end
  fields[field] = value
end

-- Remembered answer of a key with a lifetime, as this batch sees it; false when there is none.
local function recall(key)
  local kept = lives[key]
  if kept then return kept end
  return redis.call('GET', key)
end

-- Remember an answer under a key with a lifetime, at commit.
local function remember(key, value)
  lives[key] = value
end

-- Enter a uid into a due index at commit.
local function fall_due(key, uid)
  appended[key] = (appended[key] or '') .. uid
end

-- Number and queue one event; returns its sequence number.
local function emit(type, mall, store, uid, terminal, request, body, actor, rest)
  seq = seq + 1
  events[#events + 1] = { seq, pack(EVENT, 1, type, now, mall, store, uid, terminal, request, body, #actor) .. actor .. rest }
  return seq
end

-- Write all that was decided. One event per change; only forgetting, which an earlier event announced, has none.
local function commit()
  for _, event in ipairs(events) do
    redis.call('XADD', KEYS[2], string.format('%.0f-%.0f', epoch, event[1]), 'e', event[2])
  end
  if #events > 0 then
    redis.call('HSET', KEYS[1], 'seq', string.format('%.0f', seq), 'last_seen', string.format('%.0f', now))
  end
  for key, fields in pairs(changed) do
    local flat = {}
    for field, value in pairs(fields) do
      if value then
        flat[#flat + 1] = field
        flat[#flat + 1] = value
      else
        redis.call('HDEL', key, field)
      end
      -- unpack is limited by Lua's C stack (8,000 values), and failing here would leave half a batch
      if #flat == 2000 then
        redis.call('HSET', key, unpack(flat))
        flat = {}
      end
    end
    if #flat > 0 then redis.call('HSET', key, unpack(flat)) end
  end
  for key, uids in pairs(appended) do
    redis.call('APPEND', key, uids)
  end
  for key, value in pairs(lives) do
    redis.call('SET', key, value, 'EX', LIMIT.STOCK_ANSWER_TTL_S)
  end
end

-- A record as a table; the order of fields is RECORD's.
local function read_record(bytes)
  local r = {}
  local at
  r.layout, r.state, r.flavour, r.channel, r.mall, r.store, r.policy, r.issued, r.changed, r.stamp_floor, r.exp, r.issue_exp, r.amount,
  r.pin_generation, r.revision, r.cycle, r.tries, r.issue_epoch, r.issue_seq, r.request, r.body, r.last_terminal, r.last_at,
  r.lock_epoch, r.lock_seq, r.n_lines, r.n_requests, r.order_len, r.split_len, at = unpack_fields(RECORD, bytes)
  r.lines = {}
  for n = 1, r.n_lines do
    local sku, count, left
    sku, count, left, at = unpack_fields(LINE, bytes, at)
    r.lines[n] = { sku = sku, count = count, left = left }
  end
  r.requests = bytes:sub(at, at + 12 * r.n_requests - 1)
  at = at + 12 * r.n_requests
  r.order = bytes:sub(at, at + r.order_len - 1)
  r.split = bytes:sub(at + r.order_len)
  return r
end

local function write_lines(lines)
  local parts = {}
  for n, line in ipairs(lines) do
    parts[n] = pack(LINE, line.sku, line.count, line.left)
  end
  return table.concat(parts)
end

local function write_record(r)
  return pack(RECORD, 1, r.state, r.flavour, r.channel, r.mall, r.store, r.policy, r.issued, r.changed, r.stamp_floor, r.exp, r.issue_exp,
    r.amount, r.pin_generation, r.revision, r.cycle, r.tries, r.issue_epoch, r.issue_seq, r.request, r.body, r.last_terminal,
    r.last_at, r.lock_epoch, r.lock_seq, #r.lines, #r.requests / 12, #r.order, #r.split)
    .. write_lines(r.lines) .. r.requests .. r.order .. r.split
end

-- The content that a payload shows has changed: renders from now on must not share a stamp with earlier ones. Until now the
-- largest stamp given was the first even second from max(now, floor) on (engine.issuance.now_stamp): the floor goes past it.
local function touch(r)
  local given = math.max(floor(now / 1000), r.stamp_floor)
  r.stamp_floor = given + given % 2 + 1
  r.changed = now
  if r.revision < 255 then r.revision = r.revision + 1 end
end

-- Stock figures of a SKU as a table; zeros when the store has never had it.
local function read_stock(key, sku)
  local bytes = look(key, sku)
  local s = { on_hand = 0, reserved = 0, baseline = 0, tier = 0 }
  if bytes then
    s.on_hand, s.reserved, s.baseline, s.tier = unpack_fields(STOCK, bytes)
  end
  return s
end

local function write_stock(key, sku, s)
  place(key, sku, pack(STOCK, s.on_hand, s.reserved, s.baseline, s.tier))
end

-- End a code. The due index is that of the minute in which it will be forgotten, named by the caller, who knows the time too.
local function end_record(r, state, due_key, uid)
  r.state = state
  touch(r)
  fall_due(due_key, uid)
end
