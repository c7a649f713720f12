"""One way to hash several parts into 32 bytes."""

from __future__ import annotations

import hashlib


def combine(purpose: str, *parts: bytes) -> bytes:
    """SHA-256 over parts, each prefixed with its length so that no two lists of parts read the same.

    :param purpose: what the digest is for, with a version; two purposes never share a digest.
    :return: 32 bytes.
    """
    counted: list[bytes] = []
    for part in (purpose.encode(), *parts):
        counted += (b"%d:" % len(part), part)
    return hashlib.sha256(b"".join(counted)).digest()
