-- redeem: one try to redeem (or to inspect) each of N codes
-- KEYS   1 to 6 the partition's own · then the keys the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one REDEEM_ITEM each
-- ITEM   uid:c8 record_key:I2 answer_key:I2 stock_key:I2 due_key:I2 proof_key:I2 request:c12 body:c8 mall:I4 store:I4 terminal:I4 version:B stale:B pin_1:B pin_2:B generation_1:B generation_2:B proof:B place:B closed:B window:B bucket:B dry:B proof_digest:c12 proof_method:B n_lines:B actor_len:I2
-- ANSWER verdict:B at:I6 epoch:I4 seq:I6 terminal:I4 tries_left:B sku:I4 store:I4 cycle:B flavour:B flags:B exp:I4 bucket:B n_lines:B order_len:B
-- RETURN per item one byte and, but for X, M and K, a REDEEM_ANSWER with its lines and order id: A decided now · R remembered ·
--        X request id reused with another body · M the code has too many remembered changes · K the PIN key of the
--        code's generation is not usable
--
-- The caller's findings (stale, pin, proof, place, closed, window) are what the pure policy found before; each is 0 when it
-- found nothing against the try, and applies only if no rule before it answers. stale is 1; proof, place, closed and window
-- are the verdict's number. proof applies to codes that need one, window to codes that windows bind. proof_method is the flag
-- of the method by which a good proof was made, proof_digest is burnt with its use.
-- generation_1 and generation_2 are the usable generations of the PIN key (0: none).
-- pin_1 and pin_2 are the PIN generations for which the PIN given was right (0: none), both 255 when no PIN was given.
-- version is what the payload claims. `dry` (inspect) remembers nothing, counts nothing and writes nothing.

local failed = begin()
if failed then return failed end

local refused = {}
-- What `refuse` says of the last try.
local tried = { uid = '', mall = 0, store = 0, terminal = 0, bucket = 0, dry = false }

-- Facts by their places, since a table for them would be made and freed for each item; nil: now, 0, or no lines.
local function answer(verdict, r, bucket, at, event_epoch, event_seq, terminal, tries_left, sku, lines)
  if not r then return pack(REDEEM_ANSWER, verdict, now, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, bucket, 0, 0) end
  local order = order_of(r)
  lines = lines or NONE
  return pack(REDEEM_ANSWER, verdict, at or now, event_epoch or 0, event_seq or 0, terminal or 0, tries_left or 0, sku or 0,
    r[R.store], r[R.cycle], r[R.flavour], r[R.flags], r[R.exp], bucket, #lines, #order) .. write_lines(lines) .. order
end

-- Lines that are no part of a bundle, and bundles, by what was wanted: a bundle's parts are handed out together or not at all.
local function find_wanted(r, sku, count)
  for _, bundle in ipairs(r.bundles) do
    if bundle.sku == sku then
      if bundle.units < count then return nil end
      local parts = {}
      for n = bundle.first, bundle.first + bundle.n - 1 do
        local line = r.lines[n]
        local part = count * line.count / bundle.units
        if line.left < part then return nil end
        parts[#parts + 1] = { n = n, count = part, sku = line.sku, left = 0 }
      end
      return parts
    end
  end
  for n, line in ipairs(r.lines) do
    local in_bundle = false
    for _, bundle in ipairs(r.bundles) do
      if n >= bundle.first and n < bundle.first + bundle.n then in_bundle = true end
    end
    if line.sku == sku and not in_bundle and line.left >= count then
      return { { n = n, count = count, sku = line.sku, left = 0 } }
    end
  end
  return nil
end

-- Lines to hand out: all that is left, or those wanted; `left` of each is found when it is taken. Returns them, or nil and the SKU that
-- has not enough left.
local function choose(r, item, at, n_wanted)
  local taken = {}
  if n_wanted == 0 then
    local lines = r.lines
    for n = 1, #lines do
      local line = lines[n]
      if line.left > 0 then taken[#taken + 1] = { n = n, count = line.left, sku = line.sku, left = 0 } end
    end
    return taken
  end
  for _ = 1, n_wanted do
    local sku, count
    sku, count, at = unpack_fields(WANTED, item, at)
    local found = find_wanted(r, sku, count)
    if not found then return nil, sku end
    for _, take in ipairs(found) do taken[#taken + 1] = take end
  end
  return taken
end

-- One try. Returns the reply; or nil, the verdict that refuses it, the record if the code has one, and facts for the answer.
local function redeem(item)
  local uid, record_key, answer_key, stock_key, due_key, proof_key, request, body, mall, store, terminal, version, stale,
  pin_1, pin_2, generation_1, generation_2, proof, place_finding, closed, window, bucket, dry, proof_digest, proof_method,
  n_lines, actor_len, at = unpack_fields(REDEEM_ITEM, item)
  local answer_id
  dry = dry == 1
  tried.uid, tried.mall, tried.store, tried.terminal, tried.bucket, tried.dry = uid, mall, store, terminal, bucket, dry
  record_key, stock_key, due_key = KEYS[record_key], KEYS[stock_key], KEYS[due_key]

  -- a remembered request gets its first answer, whatever the policy says now
  if not dry then
    answer_key = KEYS[answer_key]
    local kept
    kept, answer_id = look(answer_key, request)
    if kept then
      if kept:sub(1, 8) ~= body then return 'X' end
      return 'R' .. kept:sub(9)
    end
  end

  -- the record's state
  local bytes, record_id = look(record_key, uid)
  if not bytes then return nil, REDEEM.UNKNOWN_CODE end
  local r = read_record(bytes)
  if r[R.mall] ~= mall then return nil, REDEEM.UNKNOWN_CODE end
  if floor(r[R.flavour] / 16) ~= version then return nil, REDEEM.INVALID_CODE end
  if r[R.state] == STATE.REDEEMED then
    return nil, REDEEM.ALREADY_REDEEMED, r, { at = r[R.last_at], terminal = r[R.last_terminal] }
  end
  if r[R.state] == STATE.VOIDED then return nil, REDEEM.VOIDED, r, { at = r[R.changed] } end
  if is_over(r) then return nil, REDEEM.EXPIRED, r end
  if r[R.state] == STATE.LOCKED then
    return nil, REDEEM.LOCKED, r, { epoch = r[R.lock_epoch], seq = r[R.lock_seq] }
  end
  if r[R.state] == STATE.HELD then return nil, REDEEM.NOT_CONFIRMED, r end

  -- the payload's own freshness, then the store
  if stale ~= 0 then return nil, REDEEM.STALE_CODE, r end
  if r[R.store] ~= store then return nil, REDEEM.WRONG_STORE, r end

  if not dry and #r.requests >= 12 * LIMIT.REMEMBERED_REQUESTS_MAX then return 'M' end
  local actor = item:sub(-actor_len)
  if actor_len == 0 then actor = '' end

  -- second factor: each failed try is burnt here, so parallel guesses gain nothing
  local factor, burnt
  if version == 1 and not dry then
    if pin_1 == 255 and pin_2 == 255 then return nil, REDEEM.PIN_REQUIRED, r end
    -- Its PIN can't be told right from wrong: no try of the customer's.
    if r[R.pin_generation] ~= generation_1 and r[R.pin_generation] ~= generation_2 then return 'K' end
    if pin_1 ~= r[R.pin_generation] and pin_2 ~= r[R.pin_generation] then factor = REDEEM.PIN_WRONG end
  elseif floor(r[R.flags] / FLAG_PROOF_NEEDED) % 2 == 1 and not dry then
    if proof == REDEEM.PROOF_REQUIRED then return nil, proof, r end
    proof_key = KEYS[proof_key]
    if proof ~= 0 or floor(r[R.flags] / proof_method) % 2 == 0 or look(proof_key, proof_digest) then
      factor = REDEEM.PROOF_REJECTED
    else
      burnt = proof_digest
    end
  end
  if factor then
    local number, locked = burn_try(r, uid, store, terminal, request, body, actor, factor, bucket)
    local kept = answer(locked and REDEEM.LOCKED or factor, r, bucket, now, epoch, number, 0, LIMIT.TRIES_MAX - r[R.tries])
    place(record_key, uid, write_record(r), record_id)
    place(answer_key, request, body .. kept, answer_id)
    return 'A' .. kept
  end

  -- where the terminal is, and whether the store hands out now
  if place_finding ~= 0 then return nil, place_finding, r end
  if closed ~= 0 then return nil, closed, r end
  if window ~= 0 and r[R.flags] % 2 == FLAG_WINDOWS_BIND then return nil, window, r end

  -- what is left of the code, then the stock
  local taken, missing = choose(r, item, at, n_lines)
  if not taken then return nil, REDEEM.NOTHING_LEFT, r, { sku = missing } end
  local figures = {}
  for n = 1, #taken do
    local take = taken[n]
    local sku = take.sku
    local s = figures_of(figures, stock_key, sku)
    if s.on_hand < take.count then return nil, REDEEM.OUT_OF_STOCK, r, { sku = sku } end
    s.on_hand = s.on_hand - take.count
    s.reserved = s.reserved - take.count
  end
  if dry then return 'A' .. answer(REDEEM.REDEEMED, r, bucket, r[R.last_at], 0, 0, 0, 0, 0, r.lines) end

  -- everything is decided: take the stock, mark the code, number the event
  local lines, all_taken = r.lines, true
  for n = 1, #taken do
    local take = taken[n]
    local line = lines[take.n]
    line.left = line.left - take.count
    take.left = line.left
  end
  for n = 1, #lines do
    if lines[n].left > 0 then all_taken = false end
  end
  r[R.last_terminal], r[R.last_at] = terminal, now
  r.requests = r.requests .. request
  if burnt then
    -- A proof is good for one redemption; it is forgotten with the code.
    r.requests = r.requests .. burnt
    place(proof_key, burnt, 'P')
  end
  if all_taken then
    end_record(r, STATE.REDEEMED, due_key, uid)
  else
    r[R.state] = STATE.PARTLY
    touch(r)
  end
  local number = emit(EVENT_TYPE.REDEEMED, mall, store, uid, terminal, request, body, actor,
    pack('>BBBB', r[R.state], r[R.cycle], bucket, #taken) .. write_lines(taken) .. write_places(taken) .. (burnt or ''))
  write_figures(stock_key, mall, store, figures)
  local kept = answer(REDEEM.REDEEMED, r, bucket, now, epoch, number, terminal, 0, 0, taken)
  place(record_key, uid, write_record(r), record_id)
  place(answer_key, request, body .. kept, answer_id)
  return 'A' .. kept
end

-- Note a try that was refused, the last one, and answer it.
local function refuse(verdict, r, facts)
  if not tried.dry then
    refused[#refused + 1] = pack(ATTEMPT, now, tried.uid, tried.mall, tried.store, tried.terminal, verdict, tried.bucket)
  end
  facts = facts or NONE
  return 'A' .. answer(verdict, r, tried.bucket, facts.at, facts.epoch, facts.seq, facts.terminal, 0, facts.sku)
end

local answers = {}
for n = 3, #ARGV do
  local reply, verdict, r, facts = redeem(ARGV[n])
  answers[n - 2] = reply or refuse(verdict, r, facts)
end
commit()
for n = 1, #refused do
  call('XADD', KEYS[3], 'MAXLEN', '~', LIMIT.ATTEMPTS_KEPT, '*', 'a', refused[n])
end
return answers
