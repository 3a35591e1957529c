from datetime import timedelta

from pydantic import BaseModel, Field

from services.chassis.lockout import LockoutPolicy
from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    password_min_length: int = Field(default=10, ge=8)
    """What a tenant without a password policy of its own asks for."""
    password_min_strength: int = Field(default=2, ge=0, le=4)
    """zxcvbn's score."""
    breached_passwords_url: str | None = Field(default=None, pattern="^https?://")
    """Where passwords are looked up among stolen ones, 5 digits of a hash at a time: the range API of Have I Been Pwned
    ("https://api.pwnedpasswords.com/range/"), or a mirror of it. Nowhere when unset."""
    verification_lifetime: timedelta = timedelta(hours=24)
    """How long a code works that verifies an address."""
    recovery_lifetime: timedelta = timedelta(hours=1)
    """How long a code works that sets a new password."""
    invitation_lifetime: timedelta = timedelta(days=7)
    """How long a code works that lets somebody whom an administrator invited choose a password."""
    lockout_free: int = Field(default=5, ge=1)
    """Wrong passwords without a wait; after that it doubles each time, from `lockout_first` to `lockout_longest`."""
    lockout_first: timedelta = timedelta(seconds=10)
    lockout_longest: timedelta = timedelta(minutes=15)

    @property
    def lockout(self) -> LockoutPolicy:
        return LockoutPolicy(free=self.lockout_free, first=self.lockout_first, longest=self.lockout_longest)


SERVICE = ServiceSpec(
    id="user-auth",
    port=3003,
    calls=["session-mgr", "puabo-os", "key-service"],
    calls_back=["auth-service", "auth-service-v2", "backend-api"],
    sends_mail=True,
    config=Config,
)
