-- transfer: N steps of moving units between stores: out of one partition, into another, done
-- KEYS   1 to 6 the partition's own · then the keys the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one TRANSFER_ITEM each
-- ITEM   step:B stock_key:I2 answer_key:I2 transit_key:I2 request:c12 body:c8 departure:c10 mall:I4 store:I4 other_store:I4 sku:I4 amount:I4 finding:B actor_len:I2
-- ANSWER verdict:B sku:I4 on_hand:I4 reserved:I4 baseline:I4 tier:B epoch:I4 seq:I6
-- RETURN per item one byte and, but for X and W, a STOCK_ANSWER: A decided now · R remembered · X request id reused with another
--        body · W no room at the other store: the units wait in transit
--
-- Out takes the units and writes them into the transit hash of its own partition, in one step; in adds them, once for each
-- departure; done strikes them out of the transit. Cut off in between, the units are in transit, and whoever looks at the
-- transit hash next repeats in and done. So no unit is ever lost or made; nor where a figure would outgrow its limit (the caller asks
-- before the units leave, but others bring in meanwhile): then they wait. What is remembered of an arrival hangs on the number
-- of the departure, not on the request id alone: an id that comes back when its answer is long forgotten is another transfer.
-- finding (0: none, else the verdict's number) is what the set-up says against it; it comes after a remembered answer.

local failed = begin()
if failed then return failed end

local EMPTY = { on_hand = 0, reserved = 0, baseline = 0, tier = 0 }

local function answer(verdict, sku, s, number)
  return pack(STOCK_ANSWER, verdict, sku, s.on_hand, s.reserved, s.baseline, s.tier, number > 0 and epoch or 0, number)
end

local function transfer(item)
  local step, stock_key, answer_key, transit_key, request, body, departure, mall, store, other_store, sku, amount, finding,
  actor_len, at = unpack_fields(TRANSFER_ITEM, item)
  stock_key, answer_key, transit_key = KEYS[stock_key], KEYS[answer_key], KEYS[transit_key]
  local actor = item:sub(at, at + actor_len - 1)

  if step == TRANSFER_STEP.DONE then
    look(transit_key, request .. departure)
    place(transit_key, request .. departure, false)
    return 'A' .. answer(TRANSFER.TRANSFERRED, sku, EMPTY, 0)
  end

  local kept = recall(answer_key)
  if kept then
    if kept:sub(1, 8) ~= body then return 'X' end
    return 'R' .. kept:sub(9)
  end
  if finding ~= 0 then return 'A' .. answer(finding, sku, EMPTY, 0) end
  local s = read_stock(stock_key, sku)
  local number
  if step == TRANSFER_STEP.OUT then
    if s.on_hand - s.reserved < amount then return 'A' .. answer(TRANSFER.STOCK_SHORT, sku, s, 0) end
    s.on_hand = s.on_hand - amount
    number = emit(EVENT_TYPE.TRANSFER_OUT, mall, store, NOBODY, 0, request, body, actor,
      pack('>I4I4I4', sku, amount, other_store))
    departure = pack(DEPARTURE, epoch, number)
    look(transit_key, request .. departure)
    place(transit_key, request .. departure, pack(TRANSIT, body, mall, store, other_store, sku, amount, now) .. actor)
  else
    if s.on_hand + amount > LIMIT.STOCK_MAX then return 'W' end
    s.on_hand = s.on_hand + amount
    number = emit(EVENT_TYPE.TRANSFER_IN, mall, store, NOBODY, 0, request, body, actor,
      pack('>I4I4I4', sku, amount, other_store) .. departure)
  end
  write_stock(stock_key, mall, store, sku, s)
  kept = answer(TRANSFER.TRANSFERRED, sku, s, number)
  -- An arrival is remembered longer than a departure could possibly lie in transit.
  remember(answer_key, body .. kept, step == TRANSFER_STEP.OUT and LIMIT.STOCK_ANSWER_TTL_S or LIMIT.ARRIVAL_TTL_S)
  return 'A' .. kept
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = transfer(ARGV[n])
end
commit()
return answers
