-- reverse: take back what N redemptions handed out
-- KEYS   1 to 6 the partition's own · then the keys the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one REVERSE_ITEM each
-- ITEM   uid:c8 record_key:I2 answer_key:I2 stock_key:I2 due_key:I2 forget_key:I2 request:c12 body:c8 mall:I4 store:I4 terminal:I4 window_s:I4 cycles_max:B release:B exp:I4 n_lines:B actor_len:I2 reason_len:I2
-- ANSWER verdict:B at:I6 epoch:I4 seq:I6 exp:I4 sku:I4 store:I4 cycle:B n_lines:B
-- RETURN per item one byte and, but for X, a REVERSE_ANSWER with its lines: A decided now · R remembered · X request id reused
--        with another body
--
-- The goods are back on the shelf, so on_hand rises. They are reserved again for the same code, unless `release` says that the
-- customer was refunded: then the units leave the code, and a code with nothing left and nothing handed out is void.

local failed = begin()
if failed then return failed end

local function answer(verdict, r, facts)
  facts = facts or {}
  local lines = facts.lines or {}
  return pack(REVERSE_ANSWER, verdict, now, facts.seq and epoch or 0, facts.seq or 0, r and r[R.exp] or 0, facts.sku or 0,
    r and r[R.store] or 0, r and r[R.cycle] or 0, #lines) .. write_lines(lines)
end

local function in_bundle(r, n)
  for _, bundle in ipairs(r.bundles) do
    if n >= bundle.first and n < bundle.first + bundle.n then return true end
  end
  return false
end

-- What comes back: all that is out, or the lines wanted. Returns them, or nil and the SKU of which less is out.
local function choose(r, item, at, n_wanted)
  local back = {}
  if n_wanted == 0 then
    for n, line in ipairs(r.lines) do
      if line.count > line.left then back[#back + 1] = { n = n, count = line.count - line.left } end
    end
    return back
  end
  for _ = 1, n_wanted do
    local sku, count
    sku, count, at = unpack_fields(WANTED, item, at)
    local found = {}
    for _, bundle in ipairs(r.bundles) do
      if bundle.sku == sku then
        if bundle.units < count then return nil, sku end
        for n = bundle.first, bundle.first + bundle.n - 1 do
          local line = r.lines[n]
          local part = count * line.count / bundle.units
          if line.count - line.left < part then return nil, sku end
          found[#found + 1] = { n = n, count = part, bundle = bundle, units = count }
        end
      end
    end
    if #found == 0 then
      for n, line in ipairs(r.lines) do
        if line.sku == sku and not in_bundle(r, n) and line.count - line.left >= count then
          found = { { n = n, count = count } }
        end
      end
    end
    if #found == 0 then return nil, sku end
    for _, take in ipairs(found) do back[#back + 1] = take end
  end
  return back
end

-- With a release the units leave the code: the bundles they were parts of shrink with them. A bundle that has left the code
-- altogether has no units by which its parts could be counted, and keeps none.
local function shrink_bundles(r)
  for _, bundle in ipairs(r.bundles) do
    if bundle.units > 0 then
      local line = r.lines[bundle.first]
      bundle.units = line.count / (line.before / bundle.units)
    end
  end
end

local function units_out(r)
  local out = 0
  for _, line in ipairs(r.lines) do out = out + line.count - line.left end
  return out
end

local function reverse(item)
  local uid, record_key, answer_key, stock_key, due_key, forget_key, request, body, mall, store, terminal, window_s, cycles_max,
  release_units, exp, n_lines, actor_len, reason_len, at = unpack_fields(REVERSE_ITEM, item)
  record_key, answer_key, stock_key = KEYS[record_key], KEYS[answer_key], KEYS[stock_key]
  due_key, forget_key = KEYS[due_key], KEYS[forget_key]
  local tail = #item - reason_len - actor_len + 1
  local actor = item:sub(tail, tail + actor_len - 1)
  local reason = item:sub(tail + actor_len)
  release_units = release_units == 1

  local kept = look(answer_key, request)
  if kept then
    if kept:sub(1, 8) ~= body then return 'X' end
    return 'R' .. kept:sub(9)
  end
  local bytes = look(record_key, uid)
  local r = bytes and read_record(bytes)
  if not r or r[R.mall] ~= mall then return 'A' .. answer(REVERSE.UNKNOWN_CODE, nil) end
  if r[R.store] ~= store then return 'A' .. answer(REVERSE.WRONG_STORE, r) end
  if units_out(r) == 0 then return 'A' .. answer(REVERSE.NOT_REDEEMED, r) end
  if r[R.state] == STATE.VOIDED or is_over(r) then return 'A' .. answer(REVERSE.REVERSAL_CLOSED, r) end
  if r[R.last_at] + window_s * 1000 <= now then return 'A' .. answer(REVERSE.REVERSAL_CLOSED, r) end
  if r[R.cycle] >= cycles_max then return 'A' .. answer(REVERSE.REVERSAL_LIMIT, r) end
  local back, missing = choose(r, item, at, n_lines)
  if not back then return 'A' .. answer(REVERSE.NOT_REDEEMED, r, { sku = missing }) end

  local figures, lines = {}, {}
  for _, line in ipairs(r.lines) do line.before = line.count end
  for n, take in ipairs(back) do
    local line = r.lines[take.n]
    local s = figures_of(figures, stock_key, line.sku)
    s.on_hand = s.on_hand + take.count
    if release_units then
      line.count = line.count - take.count
    else
      s.reserved = s.reserved + take.count
      line.left = line.left + take.count
    end
    lines[n] = { sku = line.sku, count = take.count, left = line.left }
  end
  if release_units then shrink_bundles(r) end
  local out, left = units_out(r), 0
  for _, line in ipairs(r.lines) do left = left + line.left end
  r[R.cycle] = r[R.cycle] + 1
  r.requests = r.requests .. request
  if left == 0 and out == 0 then
    end_record(r, STATE.VOIDED, forget_key, uid)
  elseif left == 0 then
    -- still redeemed, by fewer units: its afterlife begins anew
    end_record(r, r[R.state], forget_key, uid)
  else
    if r[R.state] ~= STATE.LOCKED then r[R.state] = out == 0 and STATE.LIVE or STATE.PARTLY end
    if not release_units and r[R.exp] < exp then
      r[R.exp] = exp
      fall_due(due_key, uid)
    end
    touch(r)
  end
  local number = emit(EVENT_TYPE.REVERSED, mall, store, uid, terminal, request, body, actor,
    pack('>BBBI4BI2', r[R.state], r[R.cycle], release_units and 1 or 0, r[R.exp], #lines, #reason) .. write_lines(lines) .. write_places(back) .. reason)
  write_figures(stock_key, mall, store, figures)
  kept = answer(REVERSE.REVERSED, r, { seq = number, lines = lines })
  place(record_key, uid, write_record(r))
  place(answer_key, request, body .. kept)
  return 'A' .. kept
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = reverse(ARGV[n])
end
commit()
return answers
