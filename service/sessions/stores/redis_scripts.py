"""The Lua scripts that change records in Redis or Valkey. Redis runs each script atomically."""

from __future__ import annotations

IS_TAKEN = """
local record = redis.call('HMGET', KEYS[1], 'k', 'o', 'p')
if not record[1] or record[1] == 'gone' then return 0 end
if record[1] == 'free' or record[3] or record[2] == ARGV[1] then return 1 end
return redis.call('EXISTS', ARGV[2] .. 'o:' .. record[2])
"""
_THERE = """
local function be_there(key, term, lease)
    if redis.call('EXISTS', key) == 0 then redis.call('SET', key, term, 'PX', lease) end
end
"""
RESERVE = f"""
{_THERE}
local function is_taken() {IS_TAKEN} end
if is_taken() == 1 then return false end
local epoch = redis.call('HINCRBY', KEYS[1], 'e', 1)
redis.call('HDEL', KEYS[1], 'p')
redis.call('HSET', KEYS[1], 'o', ARGV[1], 'k', 'owned')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('SREM', ARGV[2] .. 'w:' .. ARGV[1], ARGV[4], ARGV[5])
be_there(ARGV[2] .. 'o:' .. ARGV[1], ARGV[6], ARGV[7])
return epoch
"""
CLAIM = f"""
{_THERE}
local record = redis.call('HMGET', KEYS[1], 'k', 'o', 'p', 'e')
if not record[1] then return {{'none'}} end
if record[1] == 'gone' then return {{'gone', record[3]}} end
local owner = record[2]
if record[1] == 'owned' and owner == ARGV[1] then
    return {{'claimed', record[4], record[3], redis.call('PTTL', KEYS[1])}}
end
if record[1] == 'owned' and redis.call('EXISTS', ARGV[2] .. 'o:' .. owner) == 1 then
    return {{'held', owner, record[3]}}
end
local epoch = redis.call('HINCRBY', KEYS[1], 'e', 1)
redis.call('HSET', KEYS[1], 'o', ARGV[1], 'k', 'owned')
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
redis.call('SREM', ARGV[2] .. 'w:' .. ARGV[1], ARGV[3], ARGV[5])
be_there(ARGV[2] .. 'o:' .. ARGV[1], ARGV[6], ARGV[7])
return {{'claimed', epoch, record[3], redis.call('PTTL', KEYS[1])}}
"""
ASK = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local free = {}
for at, key in ipairs(KEYS) do
    if at > 2 then
        local record = redis.call('HMGET', key, 'k', 'o')
        if record[1] == 'owned' and record[2] == ARGV[1] then
            redis.call('SADD', KEYS[2], ARGV[at])
        else
            free[#free + 1] = at - 3
        end
    end
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return free
"""
WRITE = f"""
{_THERE}
local record = redis.call('HMGET', KEYS[1], 'e', 'o', 'k')
if not record[1] and (ARGV[5] == '0' or ARGV[7] == '0') then return -1 end
if record[1] and (record[1] ~= ARGV[2] or record[2] ~= ARGV[1]) then return 0 end
if record[3] == 'gone' and ARGV[3] ~= 'gone' then return 0 end
redis.call('HSET', KEYS[1], 'e', ARGV[2], 'o', ARGV[1], 'k', ARGV[3])
if ARGV[5] == '1' then redis.call('HSET', KEYS[1], 'p', ARGV[6]) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if not record[1] then be_there(ARGV[8], ARGV[9], ARGV[10]) end
return 1
"""
UNDO_CLAIM = """
local record = redis.call('HMGET', KEYS[1], 'k', 'o')
if record[1] ~= 'owned' or record[2] ~= ARGV[1] then return end
if redis.call('HEXISTS', KEYS[1], 'p') == 1 then
    redis.call('HSET', KEYS[1], 'k', 'free')
else
    redis.call('DEL', KEYS[1])
end
"""
BEAT = """
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 0 then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[1]) end
local wanted = redis.call('SMEMBERS', KEYS[2])
redis.call('DEL', KEYS[2])
local lease, time = tonumber(ARGV[1]), redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local since, gone = now, now
local own = redis.call('HGET', KEYS[3], ARGV[3])
if own then
    local from, last = string.match(own, '(%d+) (%d+)')
    gone = math.min(now, last + lease)
    if now <= last + lease then since = tonumber(from) end
end
local rivals, all = 0, redis.call('HGETALL', KEYS[3])
for at = 1, #all, 2 do
    local from, last = string.match(all[at + 1], '(%d+) (%d+)')
    if all[at] ~= ARGV[3] then
        rivals = math.max(rivals, math.min(now, last + lease) - math.max(tonumber(from), gone))
        if now - last > tonumber(ARGV[4]) then redis.call('HDEL', KEYS[3], all[at]) end
    end
end
redis.call('HSET', KEYS[3], ARGV[3], string.format('%d %d', since, now))
return {redis.call('GET', KEYS[1]), wanted, rivals}
"""
