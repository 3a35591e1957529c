from datetime import timedelta

from pydantic import BaseModel

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    code_lifetime: timedelta = timedelta(seconds=60)
    """How long a client may take to exchange an authorization code (RFC 6749, section 4.1.2: 10 minutes at most)."""
    page_lifetime: timedelta = timedelta(minutes=30)
    """How long a sign-in or consent page may stay open."""
    offline_lifetime: timedelta = timedelta(days=90)
    """How long a grant with the scope "offline_access" lasts, used or not."""
    device_code_lifetime: timedelta = timedelta(minutes=10)
    device_poll_interval: timedelta = timedelta(seconds=5)
    """How long a device waits between two questions at least (RFC 8628, section 3.5)."""


SERVICE = ServiceSpec(
    id="auth-service-v2",
    port=3002,
    calls=["auth-service", "user-auth", "session-mgr", "token-mgr"],
    subscribes=["nexus.identity.user_auth.v1.UserErased"],
    config=Config,
)
