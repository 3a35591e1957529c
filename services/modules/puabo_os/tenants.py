"""What may become of a tenant, from which state."""

from datetime import datetime, timedelta

from nexus.modules.puabo_os.v1.faults import PlatformTenantProtected, TenantStateWrong

ACTIVE, SUSPENDED, ERASING, ERASED = "active", "suspended", "erasing", "erased"


def suspend(tenant_id: str, state: str, platform_tenant: str) -> bool:
    """Whether there is anything to do. Raises PlatformTenantProtected, TenantStateWrong."""
    if tenant_id == platform_tenant:
        raise PlatformTenantProtected()
    if state in (ERASING, ERASED):
        raise TenantStateWrong(tenant_id=tenant_id, state=state, hint="there is nothing left to suspend")
    return state == ACTIVE


def resume(tenant_id: str, state: str, erase_time: datetime | None, now: datetime) -> bool:
    """Whether there is anything to do. Raises TenantStateWrong once rows are being deleted."""
    if state == ERASED or (state == ERASING and erase_time is not None and erase_time <= now):
        raise TenantStateWrong(tenant_id=tenant_id, state=state, hint="that cannot be undone")
    return state != ACTIVE


def erase(tenant_id: str, state: str, platform_tenant: str) -> bool:
    """Whether there is anything to do. Raises PlatformTenantProtected, TenantStateWrong."""
    if tenant_id == platform_tenant:
        raise PlatformTenantProtected()
    if state == ACTIVE:
        raise TenantStateWrong(tenant_id=tenant_id, state=state, hint="suspend it first")
    return state == SUSPENDED


def erase_time(suspended: datetime, quiet: timedelta, now: datetime, delay: timedelta) -> datetime:
    """When an erasure begins: after the delay, and never before calls from before the suspension have ended."""
    return max(now + delay, suspended + quiet)
