"""Guessing made slow: after some wrong attempts a subject must wait, twice as long after each further one.

An attempt is judged when its outcome is known, on the subject's locked row. So of any number of guesses in parallel
only those count that would have counted one after the other, and the lock survives restarts. Whether the subject
exists makes no difference. A service that uses this has the table `lockouts`:

    CREATE TABLE lockouts (
        tenant_id text NOT NULL, subject bytea NOT NULL, failures integer NOT NULL DEFAULT 0,
        fail_time timestamptz NOT NULL DEFAULT now(), open_time timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (tenant_id, subject));
    CREATE INDEX ON lockouts (fail_time);
    SELECT nexus.guard_tenant_rows('lockouts');
"""

from datetime import datetime, timedelta

from pydantic import BaseModel, Field

from services.chassis.clock import now
from services.chassis.database import Database

_ROW = "SELECT failures, fail_time, open_time FROM lockouts WHERE tenant_id = nexus.tenant_id() AND subject = $1"


class LockoutPolicy(BaseModel):
    """How patient to be with wrong attempts."""

    free: int = Field(default=5, ge=1)
    """Wrong attempts without a wait."""
    first: timedelta = timedelta(seconds=10)
    longest: timedelta = timedelta(minutes=15)
    forget: timedelta = timedelta(hours=24)
    """A subject that has not failed for this long starts anew."""

    def wait(self, failures: int) -> timedelta:
        """How long to wait after this many wrong attempts."""
        if failures < self.free:
            return timedelta(0)
        return min(self.longest, self.first * 2 ** min(failures - self.free, 32))


class Lockout:
    """Counts wrong attempts in the table `lockouts`, of the call's tenant."""

    def __init__(self, database: Database, policy: LockoutPolicy) -> None:
        self._database = database
        self._policy = policy

    async def seconds_left(self, subject: bytes) -> int:
        """How long the subject is still locked; 0 if it is not."""
        row = await self._database.fetchrow(_ROW, subject)
        return _seconds(row["open_time"], now()) if row is not None else 0

    async def settle(self, subject: bytes, *, right: bool) -> int:
        """Record an attempt's outcome; returns the seconds for which it must not count, right or wrong: 0 if it does.

        Commits by itself, so call it outside a transaction that is going to fail.
        """
        async with self._database.transaction():
            if not right:
                await self._database.execute(
                    "INSERT INTO lockouts (subject) VALUES ($1) ON CONFLICT DO NOTHING", subject
                )
            row = await self._database.fetchrow(_ROW + " FOR UPDATE", subject)
            if row is None:
                return 0
            moment = now()
            left = _seconds(row["open_time"], moment)
            if left:
                return left
            if right:
                await self.clear(subject)
                return 0
            failures = 1 if moment - row["fail_time"] > self._policy.forget else row["failures"] + 1
            await self._database.execute(
                "UPDATE lockouts SET failures = $2, fail_time = $3, open_time = $4 "
                "WHERE tenant_id = nexus.tenant_id() AND subject = $1",
                subject,
                failures,
                moment,
                moment + self._policy.wait(failures),
            )
            return 0

    async def clear(self, subject: bytes) -> None:
        await self._database.execute(
            "DELETE FROM lockouts WHERE tenant_id = nexus.tenant_id() AND subject = $1", subject
        )

    async def forget_old(self) -> None:
        """Drop what is too old to matter. For `service.every`."""
        async with self._database.transaction(platform_wide=True):
            await self._database.execute("DELETE FROM lockouts WHERE fail_time < $1", now() - self._policy.forget)


def _seconds(until: datetime, moment: datetime) -> int:
    """Whole seconds from a moment on, rounded up."""
    return max(0, -int((moment - until) // timedelta(seconds=1)))
