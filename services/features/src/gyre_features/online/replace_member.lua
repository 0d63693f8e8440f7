-- Puts a member of a buffer in the place of another.
--
-- KEYS  1             buffer
-- ARGV  1             member that goes
--       2             member that takes its place; empty for none
--       3             score of that
--
-- Answers 1; or 0, with nothing put, where the first is there no more: a batch has put another in its place.
local found = redis.call('ZREM', KEYS[1], ARGV[1])
if found == 1 and ARGV[2] ~= '' then redis.call('ZADD', KEYS[1], ARGV[3], ARGV[2]) end
return found
