"""The chain of hashes: an entry cannot be changed, moved, added or removed without breaking it."""

import hashlib

START = b""


def link(
    previous: bytes,
    tenant_id: str,
    position: int,
    created_micros: int,
    actor: str,
    key: str,
    request_hash: bytes,
    change: bytes,
) -> bytes:
    """The hash of an entry; `LogEntry.hash` in the contract says over what. `created_micros` counts from 1970."""
    digest = hashlib.sha256(previous)
    texts = (tenant_id, str(position), str(created_micros), actor, key)
    for part in (*(text.encode() for text in texts), request_hash, change):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
