"""One way to hash several parts into 32 bytes."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final

_SIZES: Final = tuple(b"%d:" % size for size in range(256))  # of nearly all parts; made once, not for each of them


@cache
def _begun(purpose: str) -> bytes:
    return b"%d:%b" % (len(purpose), purpose.encode())


def combine(purpose: str, *parts: bytes) -> bytes:
    """SHA-256 over parts, each prefixed with its length so that no two lists of parts read the same.

    :param purpose: what the digest is for, with a version; two purposes never share a digest.
    :return: 32 bytes.
    """
    counted = [_begun(purpose)]
    for part in parts:
        size = len(part)
        counted.append(_SIZES[size] if size < 256 else b"%d:" % size)
        counted.append(part)
    return hashlib.sha256(b"".join(counted)).digest()
