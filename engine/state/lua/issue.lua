-- issue: make N codes, live (issue) or held until they are confirmed (hold), each with its reservation
-- KEYS   1 to 6 the partition's own · then the buckets, stock hashes and due indexes the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one ISSUE_ITEM each
-- ITEM   request:c12 body:c8 replaces:c8 mall:I4 store:I4 state:B channel:B flavour:B flags:B policy:I4 exp:I4 ttl:I4 amount:I4 pin_generation:B finding:B finding_sku:I4 stock_key:I2 due_key:I2 n_candidates:B n_free:B n_lines:B n_bundles:B order_len:B split_len:I2 actor_len:I2
-- ANSWER verdict:B uid:c8 issued:I6 exp:I4 pin_generation:B epoch:I4 seq:I6 sku:I4
-- RETURN per item one byte and, but for X and C, an ISSUE_ANSWER: A decided now · R remembered · X request id reused with
--        another body · C all candidate uids are taken by other requests
--
-- The record is its own idempotency entry: its uid is a function of the request, so a retry finds it among its candidates.
-- finding (0: none, else the verdict's number) is what the set-up says against it; a code that was made is found before that.
-- Only the first n_free candidates may be taken: the others are of versions that a policy might have asked for at the first try.
-- All candidates are looked at before the first free one is taken, because an earlier one may have become free meanwhile.

local failed = begin()
if failed then return failed end

-- Room for all fields at once: an array that grows one by one is copied at each power of two.
local BLANK = {}
for n = 1, R.split_len do BLANK[n] = 0 end

local function answer(verdict, uid, r, sku)
  if r then
    return pack(ISSUE_ANSWER, verdict, uid, r[R.issued], r[R.issue_exp], r[R.pin_generation], r[R.issue_epoch], r[R.issue_seq], 0)
  end
  return pack(ISSUE_ANSWER, verdict, uid, now, 0, 0, 0, 0, sku)
end

local function issue(item)
  local request, body, replaces, mall, store, state, channel, flavour, flags, policy, exp, ttl, amount, pin_generation, finding,
  finding_sku, stock_key, due_key, n_candidates, n_free, n_lines, n_bundles, order_len, split_len, actor_len, at =
    unpack_fields(ISSUE_ITEM, item)
  stock_key, due_key = KEYS[stock_key], KEYS[due_key]

  local free_uid, free_key
  for n = 1, n_candidates do
    local uid, record_key
    uid, record_key, at = unpack_fields(CANDIDATE, item, at)
    record_key = KEYS[record_key]
    local bytes = look(record_key, uid)
    if not bytes then
      if not free_uid and n <= n_free then free_uid, free_key = uid, record_key end
    else
      local r = read_record(bytes)
      if r[R.request] == request then
        if r[R.body] ~= body then return 'X' end
        return 'R' .. answer(ISSUE.ISSUED, uid, r, 0)
      end
    end
  end
  if not free_uid then return 'C' end
  if finding ~= 0 then return 'A' .. answer(finding, free_uid, nil, finding_sku) end

  local lines, bundles = {}, {}
  local figures = {}
  for n = 1, n_lines do
    local sku, count
    sku, count, at = unpack_fields(WANTED, item, at)
    local s = figures_of(figures, stock_key, sku)
    -- Below these tiers a channel stops before the stock does, so that those who paid elsewhere are served.
    if channel == CHANNEL.PROMOTION and s.tier >= TIER.RED then
      return 'A' .. answer(ISSUE.PROMOTION_STOPPED, free_uid, nil, sku)
    end
    if channel ~= CHANNEL.STAFF and s.tier >= TIER.CLOSED then
      return 'A' .. answer(ISSUE.CHANNEL_CLOSED, free_uid, nil, sku)
    end
    if s.on_hand - s.reserved < count then
      return 'A' .. answer(ISSUE.STOCK_SHORT, free_uid, nil, sku)
    end
    if s.tier >= TIER.TIGHT and flags % 2 == 0 then flags = flags + FLAG_WINDOWS_BIND end
    s.reserved = s.reserved + count
    lines[n] = { sku = sku, count = count, left = count }
  end
  for n = 1, n_bundles do
    local sku, units, first, count
    sku, units, first, count, at = unpack_fields(BUNDLE, item, at)
    bundles[n] = { sku = sku, units = units, first = first, n = count }
  end
  local behind = at + order_len + split_len
  local tail = item:sub(at, behind - 1)
  if replaces ~= NOBODY then tail = tail .. replaces end
  local actor = item:sub(behind, behind + actor_len - 1)

  local r = { lines = lines, bundles = bundles, requests = '', tail = tail, unpack(BLANK) }
  r[R.layout], r[R.state], r[R.flavour], r[R.channel], r[R.mall], r[R.store], r[R.policy] = 1, state, flavour, channel, mall, store, policy
  -- Nothing was rendered before this moment, so a render within the same second may take any stamp.
  r[R.issued], r[R.changed], r[R.stamp_floor], r[R.exp], r[R.issue_exp] = now, now, 0, exp, exp
  r[R.amount], r[R.ttl], r[R.flags], r[R.pin_generation], r[R.revision], r[R.cycle], r[R.tries] = amount, ttl, flags, pin_generation, 0, 0, 0
  r[R.issue_epoch], r[R.issue_seq], r[R.request], r[R.body] = epoch, seq + 1, request, body
  r[R.last_terminal], r[R.last_at], r[R.lock_epoch], r[R.lock_seq] = 0, 0, 0, 0
  r[R.n_lines], r[R.n_bundles], r[R.order_len], r[R.split_len] = n_lines, n_bundles, order_len, split_len
  local bytes = write_record(r)
  emit(state == STATE.HELD and EVENT_TYPE.HELD or EVENT_TYPE.ISSUED, mall, store, free_uid, 0, request, body, actor, bytes)
  write_figures(stock_key, mall, store, figures)
  place(free_key, free_uid, bytes)
  fall_due(due_key, free_uid)
  return 'A' .. answer(ISSUE.ISSUED, free_uid, r, 0)
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = issue(ARGV[n])
end
commit()
return answers
