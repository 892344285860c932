-- stock: N changes of stock figures: receive, adjust, count, baseline
-- KEYS   1 to 6 the partition's own · then the keys the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one STOCK_ITEM each
-- ITEM   stock_key:I2 answer_key:I2 request:c12 body:c8 mall:I4 store:I4 sku:I4 change:B negative:B amount:I4 finding:B actor_len:I2 reason_len:I2
-- ANSWER verdict:B sku:I4 on_hand:I4 reserved:I4 baseline:I4 tier:B epoch:I4 seq:I6
-- RETURN per item one byte and, but for X, a STOCK_ANSWER: A decided now · R remembered · X request id reused with another
--        body
--
-- finding (0: none, else the verdict's number) is what the set-up says against it; it comes after a remembered answer.
-- A count may set on_hand below reserved: the goods are not there, whatever was promised. Only below zero is refused.

local failed = begin()
if failed then return failed end

local EMPTY = { on_hand = 0, reserved = 0, baseline = 0, tier = 0 }

local function answer(verdict, sku, s, number)
  return pack(STOCK_ANSWER, verdict, sku, s.on_hand, s.reserved, s.baseline, s.tier, number > 0 and epoch or 0, number)
end

local function change_stock(item)
  local stock_key, answer_key, request, body, mall, store, sku, change, negative, amount, finding, actor_len, reason_len, at =
    unpack_fields(STOCK_ITEM, item)
  stock_key, answer_key = KEYS[stock_key], KEYS[answer_key]
  local actor = item:sub(at, at + actor_len - 1)
  local reason = item:sub(at + actor_len, at + actor_len + reason_len - 1)
  if negative == 1 then amount = -amount end

  local kept = recall(answer_key)
  if kept then
    if kept:sub(1, 8) ~= body then return 'X' end
    return 'R' .. kept:sub(9)
  end

  if finding ~= 0 then return 'A' .. answer(finding, sku, EMPTY, 0) end
  local s = read_stock(stock_key, sku)
  local on_hand, baseline, verdict = s.on_hand, s.baseline, STOCK_VERDICT.ADJUSTED
  if change == CHANGE.RECEIVE then
    on_hand, verdict = on_hand + amount, STOCK_VERDICT.RECEIVED
  elseif change == CHANGE.ADJUST_BY then
    on_hand = on_hand + amount
  elseif change == CHANGE.COUNT then
    on_hand = amount
  else
    baseline = amount
  end
  if on_hand < 0 then return 'A' .. answer(STOCK_VERDICT.BELOW_ZERO, sku, s, 0) end
  if on_hand > LIMIT.STOCK_MAX then return 'A' .. answer(STOCK_VERDICT.ABOVE_LIMIT, sku, s, 0) end

  s.on_hand, s.baseline = on_hand, baseline
  local number = emit(EVENT_TYPE.STOCK, mall, store, NOBODY, 0, request, body, actor,
    pack('>BI4BI4', change, sku, negative, negative == 1 and -amount or amount) ..
    pack(STOCK, s.on_hand, s.reserved, s.baseline, s.tier) .. pack('>I2', #reason) .. reason)
  write_stock(stock_key, mall, store, sku, s)
  kept = answer(verdict, sku, s, number)
  remember(answer_key, body .. kept, LIMIT.STOCK_ANSWER_TTL_S)
  return 'A' .. kept
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = change_stock(ARGV[n])
end
commit()
return answers
