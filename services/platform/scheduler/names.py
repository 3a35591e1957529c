"""Whose a schedule or queue is: "<service id>.<name>" is that service's, a name without a dot the tenant's."""

from nexus.platform.scheduler.v1.faults import OwnedByService
from services.chassis.context import OPERATOR


def owner_of(name: str) -> str | None:
    """The service that the name belongs to; None for the tenant's."""
    service, dot, _ = name.partition(".")
    return service if dot else None


def require_tenants(*names: str) -> None:
    """Raises OwnedByService for a service's name."""
    for name in names:
        if owner_of(name) is not None:
            raise OwnedByService(name=name)


def require_services(caller: str | None, *names: str) -> None:
    """Raises OwnedByService for a name that is not the calling service's own."""
    for name in names:
        if owner_of(name) is None or caller not in (owner_of(name), OPERATOR):
            raise OwnedByService(name=name)
