-- void: end N codes and release what they still reserve
-- KEYS   1 to 6 the partition's own · then the keys the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one VOID_ITEM each
-- ITEM   uid:c8 record_key:I2 answer_key:I2 stock_key:I2 due_key:I2 request:c12 body:c8 mall:I4 store:I4 actor_len:I2 reason_len:I2
-- ANSWER verdict:B at:I6 epoch:I4 seq:I6 terminal:I4 n_lines:B
-- RETURN per item one byte and, but for X, a VOID_ANSWER with its lines: A decided now · R remembered · X request id reused
--        with another body

local failed = begin()
if failed then return failed end

local function answer(verdict, at, number, terminal, lines)
  return pack(VOID_ANSWER, verdict, at, number > 0 and epoch or 0, number, terminal, #lines) .. write_lines(lines)
end

local function void(item)
  local uid, record_key, answer_key, stock_key, due_key, request, body, mall, store, actor_len, reason_len, at =
    unpack_fields(VOID_ITEM, item)
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
  -- a record of another mall, or one that came back for another store since the caller looked, is not the one meant
  if not r or r[R.mall] ~= mall or r[R.store] ~= store then return 'A' .. answer(VOID.UNKNOWN_CODE, now, 0, 0, {}) end
  if r[R.state] == STATE.REDEEMED then return 'A' .. answer(VOID.ALREADY_REDEEMED, r[R.last_at], 0, r[R.last_terminal], {}) end
  if r[R.state] == STATE.VOIDED then return 'A' .. answer(VOID.ALREADY_VOIDED, r[R.changed], 0, 0, {}) end
  if is_over(r) then return 'A' .. answer(VOID.EXPIRED, r[R.exp] * 1000, 0, 0, {}) end

  local lines, figures = release(r, stock_key)
  r.requests = r.requests .. request
  end_record(r, STATE.VOIDED, due_key, uid)
  local number = emit(EVENT_TYPE.VOIDED, mall, store, uid, 0, request, body, actor,
    pack('>BI2', #lines, #reason) .. write_lines(lines) .. reason)
  write_figures(stock_key, mall, store, figures)
  kept = answer(VOID.VOIDED, now, number, 0, lines)
  place(record_key, uid, write_record(r))
  place(answer_key, request, body .. kept)
  return 'A' .. kept
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = void(ARGV[n])
end
commit()
return answers
