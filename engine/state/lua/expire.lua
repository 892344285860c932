-- expire: end N codes whose time has come and release their stock; forget those whose afterlife is over
-- KEYS   1 to 6 the partition's own · then the keys the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3.. one EXPIRE_ITEM each
-- ITEM   uid:c8 record_key:I2 stock_key:I2 due_key:I2 n_answers:B
-- RETURN per item one byte: E expired now · F forgotten now · N nothing to do (gone, moved, or not yet due) · S the record has
--        remembered requests that the item doesn't name: read it again
--
-- A due index only says when to look; whether anything is due, the record says. So a sweep may be repeated, cut off, or run
-- by two processes at once: each release happens once.

local failed = begin()
if failed then return failed end

local function expire(item)
  local uid, record_key, stock_key, due_key, n_answers, at = unpack_fields(EXPIRE_ITEM, item)
  record_key, stock_key, due_key = KEYS[record_key], KEYS[stock_key], KEYS[due_key]
  local bytes = look(record_key, uid)
  if not bytes then return 'N' end
  local r = read_record(bytes)

  if r[R.state] < STATE.REDEEMED then
    if r[R.exp] * 1000 > now then return 'N' end
    local lines, figures = release(r, stock_key)
    end_record(r, STATE.EXPIRED, due_key, uid)
    emit(EVENT_TYPE.EXPIRED, r[R.mall], r[R.store], uid, 0, NOTHING, NOBODY, '',
      pack('>B', #lines) .. write_lines(lines))
    write_figures(stock_key, r[R.mall], r[R.store], figures)
    place(record_key, uid, write_record(r))
    return 'E'
  end

  if r[R.changed] + LIMIT.AFTERLIFE_S * 1000 > now then return 'N' end
  if n_answers ~= #r.requests / 12 then return 'S' end
  for _ = 1, n_answers do
    local request, answer_key
    request, answer_key, at = unpack_fields(ANSWER_KEY, item, at)
    look(KEYS[answer_key], request)
    place(KEYS[answer_key], request, false)
  end
  place(record_key, uid, false)
  return 'F'
end

local answers = {}
for n = 3, #ARGV do
  answers[n - 2] = expire(ARGV[n])
end
commit()
return answers
