"""One way to hash several parts into 32 bytes."""

from __future__ import annotations

import hashlib


def combine(purpose: str, *parts: bytes) -> bytes:
    """SHA-256 over parts, each prefixed with its length so that no two lists of parts read the same.

    :param purpose: what the digest is for, with a version; two purposes never share a digest.
    :return: 32 bytes.
    """
    digest = hashlib.sha256(b"%d:%s" % (len(purpose), purpose.encode()))
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
