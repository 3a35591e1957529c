"""Time-based one-time passwords (RFC 6238), as authenticator apps make them: six digits, thirty seconds, SHA-1."""

import hmac

import pyotp

_STEP_SECONDS = 30
_DRIFT_STEPS = 1  # a clock may be off by one step (RFC 6238, section 5.2)


def new_totp_secret() -> str:
    """160 random bits in base32."""
    return pyotp.random_base32()


def enrolment_uri(secret: str, *, account: str, issuer: str) -> str:
    """What the QR code says: "otpauth://totp/…"."""
    return pyotp.TOTP(secret).provisioning_uri(name=account, issuer_name=issuer)


def step_of(secret: str, code: str, seconds: float) -> int | None:
    """The time step that a code belongs to, or None for a wrong one. `seconds` is now, since the epoch.

    A step may be used once: who takes the code must have taken none of this or a later step before.
    """
    totp = pyotp.TOTP(secret)
    current = int(seconds) // _STEP_SECONDS
    found = None
    for step in range(current - _DRIFT_STEPS, current + _DRIFT_STEPS + 1):
        if hmac.compare_digest(totp.generate_otp(step), code):
            found = step
    return found
