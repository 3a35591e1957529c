from datetime import timedelta

from pydantic import BaseModel, Field

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    password_min_length: int = Field(default=10, ge=8)
    verification_lifetime: timedelta = timedelta(hours=24)
    """How long a mailed code works."""


SERVICE = ServiceSpec(id="user-auth", port=3003, calls=["session-mgr"], config=Config)
