"""The Lua scripts of the Redis store: the table of :mod:`flask_idempotent.core.machine`, one event each.

Every script touches one key and reads the server's clock. The prelude gives ``now``, ``record`` (false when absent) and
its ``state`` (``?`` when it is no record of this version), ``owner``, ``fingerprint`` and ``lapsed``. What nearly every
request needs, a claim for a new key and the outcome of a request that has its key, does not take a record apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Final

from ..core.record import HEAD_SIZE, MARK, MAX_ATTEMPT, UNDATED_SIZE, VERSION
from ..core.steps import journal_key
from .wire import pack

_LOOK: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function at(ms) return string.format('%013.0f', ms) end
local record = redis.call('GET', KEYS[1])
"""

_READ: Final = f"""
local state, attempt, owner, fingerprint, lapsed
if record then
  state, owner, fingerprint = record:sub(2, 2), record:sub(5, 20), record:sub(21, 52)
  local deadline = record:sub(53, {HEAD_SIZE})
  attempt = #record < {HEAD_SIZE} and 0 or record:byte(3) * 256 + record:byte(4)
  if record:byte(1) ~= {VERSION} or attempt == 0 or not deadline:match('^%d+$')
      or not state:match('[PFD]') or (state == 'D') ~= (#record > {HEAD_SIZE}) then
    state, owner = '?', '?'
  else
    lapsed = state == 'P' and tonumber(deadline) <= now
  end
end
"""

_PRELUDE: Final = _LOOK + _READ

_CLAIM: Final = f"""
{_LOOK}
local mine, request, lease, kept, resume = unpack(ARGV)
if not record then
  redis.call('SET', KEYS[1], '\\{VERSION}P\\0\\1' .. mine .. request .. at(now + lease), 'PX', kept)
  return 1
end
if record:sub(1, 2) == '\\{VERSION}D' then return at(now) .. record end
{_READ}
local open = fingerprint == request and (state == 'F' or (lapsed and resume == '1'))
if owner == mine or not open or state == '?' then return at(now) .. record end
local again = math.min(attempt + 1, {MAX_ATTEMPT})
record = '\\{VERSION}P' .. string.char(math.floor(again / 256), again % 256) .. mine .. request .. at(now + lease)
redis.call('SET', KEYS[1], record, 'PX', kept)
return at(now) .. record
"""

_RENEW: Final = f"""
local mine, head, lease, ttl = unpack(ARGV)
if not record then
  redis.call('SET', KEYS[1], head .. at(now + lease), 'PX', math.max(tonumber(lease), tonumber(ttl)))
elseif owner ~= mine then
  return 0
elseif state == 'P' then
  redis.call('SETRANGE', KEYS[1], {UNDATED_SIZE}, at(now + lease))
  if redis.call('PTTL', KEYS[1]) < tonumber(lease) then redis.call('PEXPIRE', KEYS[1], lease) end
end
return 1
"""

# Whether the record is the claim that a head belongs to: the same but for the state.
_RUNS: Final = f"""
  #record == {HEAD_SIZE} and record:sub(1, {UNDATED_SIZE}) == '\\{VERSION}P' .. head:sub(3)
  and record:find('^%d+$', {UNDATED_SIZE + 1})
"""

# Those who wait listen on the channel of the record's key. A user without rights to it must not undo the write: pcall.
_WAKE: Final = "redis.pcall('PUBLISH', KEYS[1], '')"

_COMPLETE: Final = f"""
{_LOOK}
local mine, head, payload, ttl = unpack(ARGV)
local done = false
if record and not ({_RUNS}) then
  {_READ}
  if owner ~= mine or state == 'F' then return 0 end
  done = state == 'D'
end
if not done then redis.call('SET', KEYS[1], head .. at(now + ttl) .. payload, 'PX', ttl) end
{_WAKE}
return 1
"""

_FAIL: Final = f"""
local mine, head, ttl = unpack(ARGV)
if record and (owner ~= mine or state == 'D') then return 0 end
if not record then
  redis.call('SET', KEYS[1], head .. at(now), 'PX', ttl)
elseif state == 'P' then
  redis.call('SET', KEYS[1], head .. at(now), 'KEEPTTL')
end
{_WAKE}
return 1
"""

_FORGET: Final = f"""
if not record then return 1 end
if owner ~= ARGV[1] or state ~= 'P' then return 0 end
redis.call('DEL', KEYS[1])
{_WAKE}
return 1
"""

# A claim that came to nothing. That an earlier attempt has failed or died stays known.
_WITHDRAW: Final = f"""
if not record then return 1 end
if owner ~= ARGV[1] or state ~= 'P' then return 0 end
if attempt > 1 then
  local rest = record:sub(3, {UNDATED_SIZE})
  redis.call('SET', KEYS[1], record:sub(1, 1) .. 'F' .. rest .. at(now), 'KEEPTTL')
else
  redis.call('DEL', KEYS[1])
end
{_WAKE}
return 1
"""

_PEEK: Final = """
return record and at(now) .. record
"""

# Writing back after an outage. What another request finished stands; what another one is running may yet finish.
# 1: ours is there; 2: another's is pending; 3: another's stands.
_RESTORE: Final = """
local mine, request, head, left, payload, ttl = unpack(ARGV)
if record and owner ~= mine then
  if state == 'P' and not lapsed then return 2 end
  if fingerprint ~= request or state == 'D' or state == '?' then return 3 end
elseif record and state ~= 'P' then
  return 1
end
redis.call('SET', KEYS[1], head .. at(now + left) .. payload, 'PX', ttl)
return 1
"""

# A full server takes no outcome, but lets a record live longer: its key stays with this request until there is room.
_STRETCH: Final = """
if record and owner == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""

# The journal of a request's steps stands beside its record. Only who holds the key may write to it.
_STEP: Final = f"""
local mine, head, lease, ttl, name, intent = unpack(ARGV)
if record and (owner ~= mine or state ~= 'P') then return false end
if not record then
  redis.call('SET', KEYS[1], head .. at(now + lease), 'PX', math.max(tonumber(lease), tonumber(ttl)))
else
  redis.call('SETRANGE', KEYS[1], {UNDATED_SIZE}, at(now + lease))
  if redis.call('PTTL', KEYS[1]) < tonumber(lease) then redis.call('PEXPIRE', KEYS[1], lease) end
end
local journal = redis.call('GET', KEYS[2]) or ''
if not journal:find(name, 1, true) then redis.call('APPEND', KEYS[2], intent) end
redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
return journal
"""

_STEP_DONE: Final = """
local mine, head, lease, ttl, result = unpack(ARGV)
if record and (owner ~= mine or state ~= 'P') then return 0 end
if not record then
  redis.call('SET', KEYS[1], head .. at(now + lease), 'PX', math.max(tonumber(lease), tonumber(ttl)))
end
redis.call('APPEND', KEYS[2], result)
redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
return 1
"""


# What tells whether a record is there as somebody knows it. Nobody waits for the server's clock, nor for the body.
_MARKS: Final = f"""
local record = redis.call('GET', KEYS[1])
return record and record:sub({MARK.start + 1}, {MARK.stop})
"""


class Script:
    """A script as it is sent: by its digest, or whole where the server does not know it yet.

    :param body: what follows the prelude.
    :param journal: whether it also touches the journal beside the record.
    :param prelude: what comes first.
    """

    def __init__(self, body: str, *, journal: bool = False, prelude: str = _PRELUDE) -> None:
        self.text = prelude + body
        self._journal = journal
        sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self._pack = partial(pack, begun=pack("EVALSHA", sha, 1 + journal).partition(b"\r\n")[2], number=3)
        #: One packed call for a key: ``call(key, *args)``.
        self.call: Callable[..., bytes] = self._call_with_journal if journal else self._pack

    def whole(self, key: str, *args: bytes | int) -> bytes:
        """The same call, from which the server learns the script."""
        keys = (2, key, journal_key(key)) if self._journal else (1, key)
        return pack("EVAL", self.text, *keys, *args)

    def _call_with_journal(self, key: str, *args: bytes | int) -> bytes:
        return self._pack(key, journal_key(key), *args)


CLAIM: Final = Script(_CLAIM, prelude="")
RENEW: Final = Script(_RENEW)
COMPLETE: Final = Script(_COMPLETE, prelude="")
FAIL: Final = Script(_FAIL)
FORGET: Final = Script(_FORGET)
WITHDRAW: Final = Script(_WITHDRAW)
PEEK: Final = Script(_PEEK)
RESTORE: Final = Script(_RESTORE)
STRETCH: Final = Script(_STRETCH)
STEP: Final = Script(_STEP, journal=True)
STEP_DONE: Final = Script(_STEP_DONE, journal=True)
MARKS: Final = Script(_MARKS, prelude="")
SCRIPTS: Final = (CLAIM, RENEW, COMPLETE, FAIL, FORGET, WITHDRAW, PEEK, RESTORE, STRETCH, STEP, STEP_DONE, MARKS)
