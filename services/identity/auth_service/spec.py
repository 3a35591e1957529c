from datetime import timedelta

from pydantic import BaseModel, Field

from services.chassis.lockout import LockoutPolicy
from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    challenge_lifetime: timedelta = timedelta(minutes=5)
    """How long a user may take for a second factor or a passkey."""
    max_passkeys: int = 20
    relying_party_id: str = ""
    """The domain that passkeys belong to (WebAuthn's RP ID); the host of NEXUS_PUBLIC_URL when empty. Passkeys are
    lost when it changes."""
    relying_party_name: str = "Nexus COS"
    origins: str = ""
    """Where sign-in pages are served, by comma: "https://app.example.com"; NEXUS_PUBLIC_URL when empty."""
    lockout_free: int = Field(default=5, ge=1)
    """Wrong codes without a wait; after that it doubles each time, from `lockout_first` to `lockout_longest`."""
    lockout_first: timedelta = timedelta(seconds=10)
    lockout_longest: timedelta = timedelta(minutes=15)

    @property
    def lockout(self) -> LockoutPolicy:
        return LockoutPolicy(free=self.lockout_free, first=self.lockout_first, longest=self.lockout_longest)


SERVICE = ServiceSpec(
    id="auth-service",
    port=3001,
    calls=["user-auth", "session-mgr", "token-mgr", "key-service", "puabo-os"],
    subscribes=["nexus.identity.user_auth.v1.UserErased"],
    config=Config,
)
