from pydantic import BaseModel, Field

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    api_keys_per_tenant: int = Field(default=500, ge=1)
    """How many keys that work a tenant may have at a time."""
    api_key_rate_low: int = Field(default=60, ge=1)
    """Calls a minute that a key of this rate is good for."""
    api_key_rate_standard: int = Field(default=600, ge=1)
    api_key_rate_high: int = Field(default=6000, ge=1)


SERVICE = ServiceSpec(
    id="backend-api",
    port=3000,
    calls=["user-auth", "puabo-os"],
    subscribes=["nexus.identity.user_auth.v1.UserErased"],
    config=Config,
    reflects_platform=True,
)
