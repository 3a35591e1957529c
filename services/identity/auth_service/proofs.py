"""What a proof is worth: how sure it makes the platform of the user (NIST SP 800-63B), by which means (RFC 8176)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Proof:
    assurance: str
    """"aal1" for one factor, "aal2" for two."""
    methods: Sequence[str]


PASSWORD = Proof("aal1", ("pwd",))
RECOGNIZED = {"pwd": PASSWORD, "fed": Proof("aal1", ("fed",))}
"""By how another service recognised the user. RFC 8176 has no name for an upstream provider's word."""
ELSEWHERE_BY_TWO = Proof("aal2", ("fed", "mfa"))
"""By an upstream provider that says that it asked for two factors."""
SECOND_FACTOR = {
    "totp_code": Proof("aal2", ("pwd", "otp", "mfa")),
    "recovery_code": Proof("aal2", ("pwd", "otp", "mfa")),
    "passkey": Proof("aal2", ("pwd", "pop", "mfa")),
}
"""Of sessions that began with the password, by the field of the request that has the factor."""
PASSKEY_ALONE = Proof("aal2", ("pop", "user", "mfa"))
"""The authenticator is one factor, the PIN or finger by which it verified its user the other."""


def after(recognized_by: str, proof: Proof) -> Proof:
    """A second factor after something else than the password; after the password when that is empty."""
    first = recognized_by or "pwd"
    return replace(proof, methods=[first if method == "pwd" else method for method in proof.methods])
