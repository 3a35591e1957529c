from pydantic import BaseModel, Field

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    max_schedules: int = Field(default=1000, ge=1)
    """How many schedules the users of one tenant may make."""
    tick_seconds: float = Field(default=0.25, ge=0.01, le=10)
    """How often a scheduler looks for what has come up: the most by which a job is late when all is well."""


SERVICE = ServiceSpec(
    id="scheduler",
    port=3023,
    subscribes=["nexus.platform.scheduler.v1.JobRequested"],
    config=Config,
)
