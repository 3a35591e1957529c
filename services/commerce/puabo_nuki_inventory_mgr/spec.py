from datetime import timedelta

from pydantic import BaseModel

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    reservation_lifetime: timedelta = timedelta(minutes=15)
    """How long a reservation holds that does not say so itself."""


SERVICE = ServiceSpec(id="puabo-nuki-inventory-mgr", port=3041, config=Config)
