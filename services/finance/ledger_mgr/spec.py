from pydantic import BaseModel, Field

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    platform_basis_points: int = Field(default=2000, ge=0, le=10_000)
    """What the platform is due of a settlement, in hundredths of a percent, unless the tenant's plan or an agreement
    with the tenant says otherwise."""
    plan_basis_points: dict[str, int] = Field(default_factory=dict)
    """The same by plan, as JSON: `{"enterprise": 1000}`."""
    batch_size: int = Field(default=500, ge=1, le=5_000)
    """How many postings one database transaction takes at most."""


SERVICE = ServiceSpec(id="ledger-mgr", port=3022, config=Config)
