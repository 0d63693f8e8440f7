-- Puts a member of a buffer in the place of another.
--
-- KEYS  1             buffer
-- ARGV  1             member that goes
--       2             member that takes its place; empty for none
--       3             score of that
--
-- Answers 1; or 0, with nothing put, where the first is there no more: a batch has put another in its place. NOPERM, with
-- nothing gone, where the right to put is missing (as far as Redis, from 7 on, tells a script).
if redis.acl_check_cmd and not redis.acl_check_cmd('ZADD', KEYS[1]) then
  return redis.error_reply('NOPERM ZADD is not allowed')
end
local found = redis.call('ZREM', KEYS[1], ARGV[1])
if found == 1 and ARGV[2] ~= '' then redis.call('ZADD', KEYS[1], ARGV[3], ARGV[2]) end
return found
