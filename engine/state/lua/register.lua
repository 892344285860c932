-- register: enter N request ids of a caller whose requests may go to any partition, or strike them out again
-- KEYS   1 to 5 the partition's own · then the register buckets the items point to
-- ARGV   1 now_ms · 2 clock compared (0|1) · 3 enter (1) or strike out (0) · 4.. one REGISTER_ITEM each
-- ITEM   request:c12 body:c8 day_0:I2 day_1:I2 day_2:I2 day_3:I2
-- RETURN per item one byte: A entered (or struck out) · R entered before with the same body · X entered before with another
--
-- A mall's request is decided in the partition of the store that it names, so a request id that comes back naming another
-- store would be decided where nothing is known of the first. The register lies in a partition chosen by the request id
-- alone. Its buckets are those of a day and end by themselves; an entry is good for three to four days.

local failed = begin()
if failed then return failed end

local enter = ARGV[3] == '1'
local answers = {}
local written = {}
for n = 4, #ARGV do
  local request, body, day_0, day_1, day_2, day_3 = unpack_fields(REGISTER_ITEM, ARGV[n])
  local found, found_in
  for _, day in ipairs({ day_0, day_1, day_2, day_3 }) do
    local kept = look(KEYS[day], request)
    if kept and kept ~= '' and not found then found, found_in = kept, KEYS[day] end
  end
  local reply = 'A'
  if found and found ~= body then
    reply = 'X'
  elseif not enter then
    if found then
      overlay[found_in][request] = false
      written[#written + 1] = { 'HDEL', found_in, request }
    end
  elseif found then
    reply = 'R'
  else
    overlay[KEYS[day_0]][request] = body
    written[#written + 1] = { 'HSET', KEYS[day_0], request, body }
  end
  answers[n - 3] = reply
end
for _, command in ipairs(written) do
  redis.call(unpack(command))
  if command[1] == 'HSET' then redis.call('EXPIRE', command[2], 4 * 86400) end
end
return answers
