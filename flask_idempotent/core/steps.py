"""The journal of a request's steps: what a retry need not do again.

The journal is a byte string that only grows. Each entry is the digest of a step's name, a kind, and a payload:

    offset  0  name      16 bytes
           16  kind       1 byte: I the step is about to run, R it has a result
           17  length     4 bytes, big-endian
           21  payload    I: the digest of the arguments; R: the result as JSON

An entry is written by the request that holds the key and by no other, so entries of one step come in the order I, R.
A step with an I and no R was under way when its worker died, or raised.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .digest import combine
from .store import Claim, Store

INTENT: Final = b"I"
RESULT: Final = b"R"
_ENTRY: Final = struct.Struct(">16scI")
_JOURNAL: Final = ":steps"


class StepError(RuntimeError):
    """A step is used in a way that cannot work; the message names it."""


class StepLost(Exception):
    """Another worker has taken the key over while the view ran: this one must not go on."""


class StepUnknown(Exception):
    """A step that must not run twice was under way when its worker died."""


class Entry(NamedTuple):
    """What the journal says about one step.

    :param arguments: the digest of the arguments that it was called with.
    :param result: its result as JSON; None while there is none.
    """

    arguments: bytes
    result: bytes | None = None


def name_digest(name: str) -> bytes:
    """16 bytes that stand for a step's name in a journal."""
    return combine("step name 1", name.encode())[:16]


def pack_entry(name: bytes, kind: bytes, payload: bytes) -> bytes:
    """One entry."""
    return _ENTRY.pack(name, kind, len(payload)) + payload


def read_journal(journal: bytes) -> dict[bytes, Entry]:
    """The steps of a journal by the digests of their names. A cut last entry does not count."""
    entries: dict[bytes, Entry] = {}
    at = 0
    while at + _ENTRY.size <= len(journal):
        name, kind, length = _ENTRY.unpack_from(journal, at)
        at += _ENTRY.size
        payload, at = journal[at : at + length], at + length
        if at > len(journal):
            break
        known = entries.get(name)
        if kind == INTENT:
            entries[name] = known or Entry(payload)
        elif known is not None:
            entries[name] = Entry(known.arguments, payload)
    return entries


def merge_journals(first: bytes, second: bytes) -> bytes:
    """One journal that says what either of two says."""
    entries, more = read_journal(first), read_journal(second)
    for name, entry in more.items():
        known = entries.get(name)
        if known is None or known.result is None:
            entries[name] = entry
    return _pack(entries)


def is_interrupted(journal: bytes) -> bool:
    """Whether a step has begun and not ended."""
    return any(entry.result is None for entry in read_journal(journal).values())


def without_interrupted(journal: bytes) -> bytes:
    """A journal in which every step that did not end never began."""
    return _pack({name: entry for name, entry in read_journal(journal).items() if entry.result is not None})


def _pack(entries: Mapping[bytes, Entry]) -> bytes:
    return b"".join(
        pack_entry(name, INTENT, entry.arguments)
        + (b"" if entry.result is None else pack_entry(name, RESULT, entry.result))
        for name, entry in entries.items()
    )


def journal_key(key: str) -> str:
    """Where the journal of a record is: beside it, in the same slot of a Cluster."""
    return f"{key}{_JOURNAL}"


def is_journal(key: str) -> bool:
    """Whether a storage key is that of a journal."""
    return key.endswith(_JOURNAL)


class Steps:
    """The steps of one running request.

    :param store: where the journal is.
    :param claim: the request's hold on its key; None for a request that nothing protects, whose steps just run.
    :param derive: makes the key that a step may hand on.
    """

    def __init__(self, store: Store | None, claim: Claim | None, derive: Callable[[str], str]) -> None:
        self._store = store
        self._claim = claim
        self._derive = derive
        self._used: set[str] = set()

    def run(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        key_arg: str | None = None,
        at_most_once: bool = False,
    ) -> Any:
        """Run a step, or return what it returned before.

        :raises StepError: the name was used before in this request, or earlier attempts called it with other arguments.
        :raises StepUnknown: ``at_most_once``, and an earlier attempt may have run it.
        :raises StepLost: another worker has the key now.
        """
        if name in self._used:
            raise StepError(f"the step {name!r} is there twice; give each step of a view a name of its own")
        self._used.add(name)
        arguments = _arguments(name, args, kwargs)
        if key_arg is not None:
            kwargs = {**kwargs, key_arg: self._derive(f"step {name}")}
        if self._store is None or self._claim is None:
            return json.loads(_result(name, function(*args, **kwargs)))
        known = self._begin(name, arguments, self._store, self._claim)
        if known is not None and known.arguments != arguments:
            raise StepError(
                f"the step {name!r} is called with other arguments than in an earlier attempt; a step's arguments must "
                "follow from the request alone"
            )
        if known is not None and known.result is not None:
            return json.loads(known.result)
        if known is not None and at_most_once:
            raise StepUnknown(name)
        result = _result(name, function(*args, **kwargs))
        if not self._store.end_step(self._claim, pack_entry(name_digest(name), RESULT, result)):
            raise StepLost(name)
        return json.loads(result)

    def _begin(self, name: str, arguments: bytes, store: Store, claim: Claim) -> Entry | None:
        digest = name_digest(name)
        journal = store.begin_step(claim, digest, pack_entry(digest, INTENT, arguments))
        if journal is None:
            raise StepLost(name)
        return read_journal(journal).get(digest)


def _arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        text = json.dumps([args, kwargs], sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StepError(
            f"the arguments of the step {name!r} must be JSON: {error}; pass ids, or use a closure"
        ) from error
    return combine("step arguments 1", text.encode())


def _result(name: str, result: Any) -> bytes:
    try:
        return json.dumps(result, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise StepError(f"the result of the step {name!r} must be JSON: {error}; return what a retry needs") from error
