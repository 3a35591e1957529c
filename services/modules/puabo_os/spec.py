from datetime import timedelta

from pydantic import BaseModel, Field

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    erasure_quiet: timedelta = Field(default=timedelta(seconds=12), ge=timedelta(0))
    """How long a tenant must have been suspended before it is erased: longer than any call in progress takes, so
    that none writes a row behind the erasure."""


SERVICE = ServiceSpec(
    id="puabo-os",
    port=3101,
    subscribes=["nexus.identity.user_auth.v1.UserErased", "nexus.platform.backend_api.v1.ApiKeyEnded"],
    config=Config,
)
