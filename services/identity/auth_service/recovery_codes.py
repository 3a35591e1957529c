"""Recovery codes: each stands in once for a lost second factor."""

import base64
import secrets

COUNT = 10
_BYTES = 10  # 80 bits: nobody guesses one, even without the lockout
_GROUP = 4


def new_codes() -> list[str]:
    """Ten codes like "k3vq-7d2a-xw5m-bz6t"."""
    return [_grouped(base64.b32encode(secrets.token_bytes(_BYTES)).decode().lower()) for _ in range(COUNT)]


def normalized(code: str) -> str:
    """A code as typed in: letters of any case, with or without dashes and spaces."""
    return _grouped("".join(code.replace("-", "").split()).lower())


def _grouped(letters: str) -> str:
    return "-".join(letters[start : start + _GROUP] for start in range(0, len(letters), _GROUP))
