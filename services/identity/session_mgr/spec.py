from datetime import timedelta

from pydantic import BaseModel

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    max_sessions_per_user: int = 5
    absolute_timeout: timedelta = timedelta(days=90)
    """A session ends this long after sign-in, used or not."""


SERVICE = ServiceSpec(
    id="session-mgr",
    port=3004,
    calls=["token-mgr", "key-service", "puabo-os"],
    subscribes=["nexus.identity.user_auth.v1.UserErased"],
    config=Config,
)
