-- extend: move the expiry of N codes
-- KEYS   1 to 6 the partition's own · then the keys the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one CHANGE_ITEM each
-- ITEM   uid:c8 record_key:I2 answer_key:I2 due_key:I2 request:c12 body:c8 mall:I4 exp:I4 actor_len:I2
-- ANSWER verdict:B at:I6 exp:I4 epoch:I4 seq:I6
-- RETURN per item one byte and, but for X and M, a CHANGE_ANSWER: A decided now · R remembered · X request id reused with
--        another body · M the code has too many remembered changes
--
-- Only ever later, and never past TTL_S_MAX from the issue: the keys that a static code needs live no longer.

local failed = begin()
if failed then return failed end

local function answer(verdict, r, number)
  return pack(CHANGE_ANSWER, verdict, now, r and r[R.exp] or 0, number > 0 and epoch or 0, number)
end

local function extend(item)
  local uid, record_key, answer_key, due_key, request, body, mall, exp, actor_len, at = unpack_fields(CHANGE_ITEM, item)
  record_key, answer_key, due_key = KEYS[record_key], KEYS[answer_key], KEYS[due_key]
  local actor = item:sub(at, at + actor_len - 1)

  local kept = look(answer_key, request)
  if kept then
    if kept:sub(1, 8) ~= body then return 'X' end
    return 'R' .. kept:sub(9)
  end
  local bytes = look(record_key, uid)
  local r = bytes and read_record(bytes)
  if not r or r[R.mall] ~= mall then return 'A' .. answer(EXTEND.UNKNOWN_CODE, nil, 0) end
  if r[R.state] == STATE.REDEEMED then return 'A' .. answer(EXTEND.ALREADY_REDEEMED, r, 0) end
  if r[R.state] == STATE.VOIDED then return 'A' .. answer(EXTEND.VOIDED, r, 0) end
  if is_over(r) then return 'A' .. answer(EXTEND.EXPIRED, r, 0) end
  if r[R.state] == STATE.HELD then return 'A' .. answer(EXTEND.NOT_CONFIRMED, r, 0) end
  if exp <= r[R.exp] then return 'A' .. answer(EXTEND.NOT_LATER, r, 0) end
  if exp > floor(r[R.issued] / 1000) + LIMIT.TTL_S_MAX then return 'A' .. answer(EXTEND.TOO_LONG, r, 0) end
  if #r.requests >= 12 * LIMIT.REMEMBERED_REQUESTS_MAX then return 'M' end

  r[R.exp] = exp
  r.requests = r.requests .. request
  touch(r)
  local number = emit(EVENT_TYPE.EXTENDED, mall, r[R.store], uid, 0, request, body, actor, pack('>I4', exp))
  kept = answer(EXTEND.EXTENDED, r, number)
  fall_due(due_key, uid)
  place(record_key, uid, write_record(r))
  place(answer_key, request, body .. kept)
  return 'A' .. kept
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = extend(ARGV[n])
end
commit()
return answers
