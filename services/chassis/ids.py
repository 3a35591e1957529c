"""Identifiers and secrets: one place that makes them."""

import hashlib
import secrets

import uuid_utils


def new_id() -> str:
    """A UUIDv7 (RFC 9562): unique, and sorted by the time it was made."""
    return str(uuid_utils.uuid7())


def new_secret() -> str:
    """256 random bits, as text that is safe in URLs and headers."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> bytes:
    """What is stored of a secret made by `new_secret`. It has too much entropy to need salt or stretching."""
    return hashlib.sha256(secret.encode()).digest()
