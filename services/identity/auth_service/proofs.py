"""What a proof is worth: how sure it makes the platform of the user (NIST SP 800-63B), by which means (RFC 8176)."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    assurance: str
    """"aal1" for one factor, "aal2" for two."""
    methods: Sequence[str]


PASSWORD = Proof("aal1", ("pwd",))
SECOND_FACTOR = {
    "totp_code": Proof("aal2", ("pwd", "otp", "mfa")),
    "recovery_code": Proof("aal2", ("pwd", "otp", "mfa")),
    "passkey": Proof("aal2", ("pwd", "pop", "mfa")),
}
"""Of sessions that began with the password, by the field of the request that has the factor."""
PASSKEY_ALONE = Proof("aal2", ("pop", "user", "mfa"))
"""The authenticator is one factor, the PIN or finger by which it verified its user the other."""
