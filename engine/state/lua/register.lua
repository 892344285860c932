-- register: enter N request ids of a caller whose requests may go to any partition, or strike them out again
-- KEYS   1 to 6 the partition's own · then the register buckets the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3 enter (1) or strike out (0) · 4.. one REGISTER_ITEM each
-- ITEM   request:c12 body:c8 ahead:I2 day_0:I2 day_1:I2 day_2:I2 day_3:I2
-- RETURN per item one byte: A entered (or struck out) · R entered before with the same body · X entered before with another
--
-- A mall's request is decided in the partition of the store that it names, so a request id that comes back naming another
-- store would be decided where nothing is known of the first. The register lies in a partition chosen by the request id
-- alone. Its buckets are those of a day and end by themselves; an entry is good for three to four days. Whose clock is behind
-- looks into tomorrow's bucket too, shortly before midnight.
--
-- An entry is the body digest (8 bytes) and, in decimal, how many calls hold it. A call enters before it is decided and is
-- struck out when it was refused; the entry goes with the last one. So a refused call can't free an id under which another
-- call, sent at the same time, is being decided or was done. One that was never decided may still happen: it holds on.

local failed = begin()
if failed then return failed end

local enter = ARGV[3] == '1'
local answers, fresh = {}, {}
for n = 4, #ARGV do
  local request, body, ahead, day_0, day_1, day_2, day_3 = unpack_fields(REGISTER_ITEM, ARGV[n])
  local found, found_in, holders
  local days = { day_0, day_1, day_2, day_3 }
  if ahead ~= day_0 then days[5] = ahead end
  for _, day in ipairs(days) do
    local kept = look(KEYS[day], request)
    if kept and not found then
      found, holders, found_in = kept:sub(1, 8), tonumber(kept:sub(9)), KEYS[day]
    end
  end
  local reply = 'A'
  if found and found ~= body then
    reply = 'X'
  elseif found then
    if enter then reply = 'R' end
    holders = holders + (enter and 1 or -1)
    if holders > 0 then
      place(found_in, request, found .. string.format('%.0f', holders))
    else
      place(found_in, request, false)
    end
  elseif enter then
    place(KEYS[day_0], request, body .. '1')
    fresh[KEYS[day_0]] = true
  end
  answers[n - 3] = reply
end
commit()
for key in pairs(fresh) do
  redis.call('EXPIRE', key, 4 * 86400)
end
return answers
