-- review: decide N locked codes
-- KEYS   1 to 6 the partition's own · then the keys the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one REVIEW_ITEM each
-- ITEM   uid:c8 record_key:I2 answer_key:I2 stock_key:I2 due_key:I2 request:c12 body:c8 mall:I4 store:I4 decision:B actor_len:I2 reason_len:I2
-- ANSWER verdict:B at:I6 epoch:I4 seq:I6 sku:I4 n_lines:B
-- RETURN per item one byte and, but for X, a REVIEW_ANSWER with its lines: A decided now · R remembered · X request id reused
--        with another body
--
-- Nobody decides on tries of their own: the evidence names who made them.

local failed = begin()
if failed then return failed end

local function answer(verdict, number, lines, sku)
  return pack(REVIEW_ANSWER, verdict, now, number > 0 and epoch or 0, number, sku or 0, #lines) .. write_lines(lines)
end

local function made_by(evidence, actor)
  local at = 1
  while at <= #evidence do
    local _, _, _, _, _, actor_len, behind = unpack_fields(EVIDENCE, evidence, at)
    if evidence:sub(behind, behind + actor_len - 1) == actor then return true end
    at = behind + actor_len
  end
  return false
end

local function review(item)
  local uid, record_key, answer_key, stock_key, due_key, request, body, mall, store, decision, actor_len, reason_len, at =
    unpack_fields(REVIEW_ITEM, item)
  record_key, answer_key, stock_key, due_key = KEYS[record_key], KEYS[answer_key], KEYS[stock_key], KEYS[due_key]
  local actor = item:sub(at, at + actor_len - 1)
  local reason = item:sub(at + actor_len, at + actor_len + reason_len - 1)

  local kept = look(answer_key, request)
  if kept then
    if kept:sub(1, 8) ~= body then return 'X' end
    return 'R' .. kept:sub(9)
  end
  local bytes = look(record_key, uid)
  local r = bytes and read_record(bytes)
  if not r or r[R.mall] ~= mall or r[R.store] ~= store then return 'A' .. answer(REVIEW.UNKNOWN_CODE, 0, {}) end
  if is_over(r) then return 'A' .. answer(REVIEW.EXPIRED, 0, {}) end
  if r[R.state] ~= STATE.LOCKED then return 'A' .. answer(REVIEW.NOT_LOCKED, 0, {}) end
  if made_by(look(KEYS[4], uid) or '', actor) then return 'A' .. answer(REVIEW.OWN_TRY, 0, {}) end

  local lines, figures = {}, {}
  local verdict
  if decision == DECISION.APPROVE then
    verdict = REVIEW.APPROVED
    r[R.state] = STATE.LIVE
    for _, line in ipairs(r.lines) do
      if line.left < line.count then r[R.state] = STATE.PARTLY end
    end
    close_review(r, uid)
  elseif decision == DECISION.REDEEM then
    verdict = REVIEW.REDEEMED
    for _, line in ipairs(r.lines) do
      if line.left > 0 then
        local s = figures_of(figures, stock_key, line.sku)
        if s.on_hand < line.left then return 'A' .. answer(REVIEW.OUT_OF_STOCK, 0, {}, line.sku) end
        s.on_hand = s.on_hand - line.left
        s.reserved = s.reserved - line.left
        lines[#lines + 1] = { sku = line.sku, count = line.left, left = 0 }
      end
    end
    for _, line in ipairs(r.lines) do line.left = 0 end
    r[R.last_terminal], r[R.last_at] = 0, now
    end_record(r, STATE.REDEEMED, due_key, uid)
  else
    verdict = REVIEW.VOIDED
    lines, figures = release(r, stock_key)
    end_record(r, STATE.VOIDED, due_key, uid)
  end
  r.requests = r.requests .. request
  local number = emit(EVENT_TYPE.REVIEWED, mall, store, uid, 0, request, body, actor,
    pack('>BBBI2', decision, r[R.state], #lines, #reason) .. write_lines(lines) .. reason)
  write_figures(stock_key, mall, store, figures)
  kept = answer(verdict, number, lines)
  place(record_key, uid, write_record(r))
  place(answer_key, request, body .. kept)
  return 'A' .. kept
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = review(ARGV[n])
end
commit()
return answers
