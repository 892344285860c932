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

local function answer(verdict, r, facts)
  facts = facts or {}
  local lines = facts.lines or {}
  local order = r and order_of(r) or ''
  return pack(REDEEM_ANSWER, verdict, facts.at or now, facts.epoch or 0, facts.seq or 0, facts.terminal or 0,
    facts.tries_left or 0, facts.sku or 0, r and r[R.store] or 0, r and r[R.cycle] or 0, r and r[R.flavour] or 0,
    r and r[R.flags] or 0, r and r[R.exp] or 0,
    facts.bucket or 255, #lines, #order) .. write_lines(lines) .. order
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
        parts[#parts + 1] = { n = n, count = part }
      end
      return parts
    end
  end
  for n, line in ipairs(r.lines) do
    local in_bundle = false
    for _, bundle in ipairs(r.bundles) do
      if n >= bundle.first and n < bundle.first + bundle.n then in_bundle = true end
    end
    if line.sku == sku and not in_bundle and line.left >= count then return { { n = n, count = count } } end
  end
  return nil
end

-- Lines to hand out: all that is left, or those wanted. Returns them, or nil and the SKU that has not enough left.
local function choose(r, item, at, n_wanted)
  local taken = {}
  if n_wanted == 0 then
    for n, line in ipairs(r.lines) do
      if line.left > 0 then taken[#taken + 1] = { n = n, count = line.left } end
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

local function redeem(item)
  local uid, record_key, answer_key, stock_key, due_key, proof_key, request, body, mall, store, terminal, version, stale,
  pin_1, pin_2, generation_1, generation_2, proof, place_finding, closed, window, bucket, dry, proof_digest, proof_method,
  n_lines, actor_len, at = unpack_fields(REDEEM_ITEM, item)
  dry = dry == 1
  record_key, stock_key, due_key = KEYS[record_key], KEYS[stock_key], KEYS[due_key]

  -- a remembered request gets its first answer, whatever the policy says now
  if not dry then
    answer_key = KEYS[answer_key]
    local kept = look(answer_key, request)
    if kept then
      if kept:sub(1, 8) ~= body then return 'X' end
      return 'R' .. kept:sub(9)
    end
  end

  local function refuse(verdict, r, facts)
    if not dry then
      refused[#refused + 1] = pack(ATTEMPT, now, uid, mall, store, terminal, verdict, bucket)
    end
    facts = facts or {}
    facts.bucket = bucket
    return 'A' .. answer(verdict, r, facts)
  end

  -- the record's state
  local bytes = look(record_key, uid)
  if not bytes then return refuse(REDEEM.UNKNOWN_CODE) end
  local r = read_record(bytes)
  if r[R.mall] ~= mall then return refuse(REDEEM.UNKNOWN_CODE) end
  if floor(r[R.flavour] / 16) ~= version then return refuse(REDEEM.INVALID_CODE) end
  if r[R.state] == STATE.REDEEMED then
    return refuse(REDEEM.ALREADY_REDEEMED, r, { at = r[R.last_at], terminal = r[R.last_terminal] })
  end
  if r[R.state] == STATE.VOIDED then return refuse(REDEEM.VOIDED, r, { at = r[R.changed] }) end
  if is_over(r) then return refuse(REDEEM.EXPIRED, r) end
  if r[R.state] == STATE.LOCKED then
    return refuse(REDEEM.LOCKED, r, { epoch = r[R.lock_epoch], seq = r[R.lock_seq] })
  end
  if r[R.state] == STATE.HELD then return refuse(REDEEM.NOT_CONFIRMED, r) end

  -- the payload's own freshness, then the store
  if stale ~= 0 then return refuse(REDEEM.STALE_CODE, r) end
  if r[R.store] ~= store then return refuse(REDEEM.WRONG_STORE, r) end

  if not dry and #r.requests >= 12 * LIMIT.REMEMBERED_REQUESTS_MAX then return 'M' end
  local actor = item:sub(-actor_len)
  if actor_len == 0 then actor = '' end

  -- second factor: each failed try is burnt here, so parallel guesses gain nothing
  local factor, burnt
  if version == 1 and not dry then
    if pin_1 == 255 and pin_2 == 255 then return refuse(REDEEM.PIN_REQUIRED, r) end
    -- Its PIN can't be told right from wrong: no try of the customer's.
    if r[R.pin_generation] ~= generation_1 and r[R.pin_generation] ~= generation_2 then return 'K' end
    if pin_1 ~= r[R.pin_generation] and pin_2 ~= r[R.pin_generation] then factor = REDEEM.PIN_WRONG end
  elseif floor(r[R.flags] / FLAG_PROOF_NEEDED) % 2 == 1 and not dry then
    if proof == REDEEM.PROOF_REQUIRED then return refuse(proof, r) end
    proof_key = KEYS[proof_key]
    if proof ~= 0 or floor(r[R.flags] / proof_method) % 2 == 0 or look(proof_key, proof_digest) then
      factor = REDEEM.PROOF_REJECTED
    else
      burnt = proof_digest
    end
  end
  if factor then
    local number, locked = burn_try(r, uid, store, terminal, request, body, actor, factor, bucket)
    local kept = answer(locked and REDEEM.LOCKED or factor, r,
      { epoch = epoch, seq = number, tries_left = LIMIT.TRIES_MAX - r[R.tries], bucket = bucket })
    place(record_key, uid, write_record(r))
    place(answer_key, request, body .. kept)
    return 'A' .. kept
  end

  -- where the terminal is, and whether the store hands out now
  if place_finding ~= 0 then return refuse(place_finding, r) end
  if closed ~= 0 then return refuse(closed, r) end
  if window ~= 0 and r[R.flags] % 2 == FLAG_WINDOWS_BIND then return refuse(window, r) end

  -- what is left of the code, then the stock
  local taken, missing = choose(r, item, at, n_lines)
  if not taken then return refuse(REDEEM.NOTHING_LEFT, r, { sku = missing }) end
  local figures = {}
  for _, take in ipairs(taken) do
    local sku = r.lines[take.n].sku
    local s = figures_of(figures, stock_key, sku)
    if s.on_hand < take.count then return refuse(REDEEM.OUT_OF_STOCK, r, { sku = sku }) end
    s.on_hand = s.on_hand - take.count
    s.reserved = s.reserved - take.count
  end
  if dry then return 'A' .. answer(REDEEM.REDEEMED, r, { at = r[R.last_at], lines = r.lines, bucket = bucket }) end

  -- everything is decided: take the stock, mark the code, number the event
  local lines, all_taken = {}, true
  for n, take in ipairs(taken) do
    local line = r.lines[take.n]
    line.left = line.left - take.count
    lines[n] = { sku = line.sku, count = take.count, left = line.left }
  end
  for _, line in ipairs(r.lines) do
    if line.left > 0 then all_taken = false end
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
    pack('>BBBB', r[R.state], r[R.cycle], bucket, #lines) .. write_lines(lines) .. write_places(taken) .. (burnt or ''))
  write_figures(stock_key, mall, store, figures)
  local kept = answer(REDEEM.REDEEMED, r, { epoch = epoch, seq = number, terminal = terminal, lines = lines, bucket = bucket })
  place(record_key, uid, write_record(r))
  place(answer_key, request, body .. kept)
  return 'A' .. kept
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = redeem(ARGV[n])
end
commit()
for _, attempt in ipairs(refused) do
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', LIMIT.ATTEMPTS_KEPT, '*', 'a', attempt)
end
return answers
