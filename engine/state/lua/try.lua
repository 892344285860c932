-- try: count N tries that failed before they reached a terminal (the customer's own distance)
-- KEYS   1 to 6 the partition's own · then the keys the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one TRY_ITEM each
-- ITEM   uid:c8 record_key:I2 answer_key:I2 request:c12 body:c8 mall:I4 verdict:B bucket:B actor_len:I2
-- ANSWER verdict:B at:I6 epoch:I4 seq:I6 tries_left:B
-- RETURN per item one byte and, but for X, M and N, a TRY_ANSWER: A decided now · R remembered · X request id reused with
--        another body · M the code has too many remembered changes · N the code can't be tried now (gone, ended, locked, held,
--        another mall's): nothing was counted

local failed = begin()
if failed then return failed end

local function try(item)
  local uid, record_key, answer_key, request, body, mall, verdict, bucket, actor_len, at = unpack_fields(TRY_ITEM, item)
  record_key, answer_key = KEYS[record_key], KEYS[answer_key]
  local actor = item:sub(at, at + actor_len - 1)

  local kept = look(answer_key, request)
  if kept then
    if kept:sub(1, 8) ~= body then return 'X' end
    return 'R' .. kept:sub(9)
  end
  local bytes = look(record_key, uid)
  local r = bytes and read_record(bytes)
  if not r or r[R.mall] ~= mall or (r[R.state] ~= STATE.LIVE and r[R.state] ~= STATE.PARTLY) or r[R.exp] * 1000 <= now then
    return 'N'
  end
  if #r.requests >= 12 * LIMIT.REMEMBERED_REQUESTS_MAX then return 'M' end
  local number, locked = burn_try(r, uid, r[R.store], 0, request, body, actor, verdict, bucket)
  kept = pack(TRY_ANSWER, locked and RENDER.LOCKED or verdict, now, epoch, number, LIMIT.TRIES_MAX - r[R.tries])
  place(record_key, uid, write_record(r))
  place(answer_key, request, body .. kept)
  return 'A' .. kept
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = try(ARGV[n])
end
commit()
return answers
