"""Group commit: postings that arrive while others are being written are written together, in one transaction.

A tenant's books have one order, that of the log, so its postings are written one after the other whatever is done;
a posting by itself would hold the ledger for a whole commit. Here one writer a tenant and process takes all that is
waiting, reads what they need in a few statements, decides each in memory in the order of arrival, and writes what
came of it in one statement. Hence a hot account costs no more than a cold one, and the busier the ledger, the larger
its batches. The head of the ledger is the only lock, taken first: there is no order to get wrong, no deadlock, and
replicas take turns.

A refusal concerns its own posting alone: what it had recorded in memory is taken back before the next one is
decided. If the database itself refuses a batch, each posting is tried by itself, so that only the culprit fails.

Exactly once. The chassis's KEYED calls keep their keys in a table and a transaction of their own call; here many calls
share one. So the ledger keeps the key and the hash of the request in the log, with the fact that it caused, unique
by (tenant, actor, key): the fact, its key, its event and the balances commit together or not at all. A repeat finds
the entry and is answered from it; with another body it is refused; a twin in the same batch finds the first in memory,
and one in another replica waits for the head and finds it in the log. The contract calls these methods IDEMPOTENT,
and requires the key, so that any caller or proxy may repeat them.
"""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from prometheus_client import Histogram

from nexus.finance.ledger_mgr.v1.faults import BatchRefused
from nexus.type.v1.faults import Conflict, DeadlineExceeded, DependencyUnavailable
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.errors import Fault
from services.chassis.events import Events, Occurrence
from services.finance.ledger_mgr.books import Books, Entry, Needs
from services.finance.ledger_mgr.operations import Operation, perform
from services.finance.ledger_mgr.store import LedgerStore

BATCH_SIZE = Histogram(
    "nexus_ledger_batch_size", "Operations in one transaction", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
)
_AWAY = (Conflict, DeadlineExceeded, DependencyUnavailable)
"""What befalls a whole batch, whoever is in it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Job:
    """What one call asks for."""

    operations: Sequence[Operation]
    linked: bool
    answer: "asyncio.Future[list[Any]]"


class Poster:
    """Writes the books of all tenants, for this process."""

    def __init__(self, database: Database, store: LedgerStore, events: Events, batch_size: int) -> None:
        self._database = database
        self._store = store
        self._events = events
        self._batch_size = batch_size
        self._waiting: dict[str, deque[_Job]] = {}
        self._writers: dict[str, asyncio.Task[None]] = {}

    async def post(self, tenant_id: str, operation: Operation) -> Any:
        """The operation's answer, once it is durable. Raises its refusal."""
        [outcome] = await self.post_all(tenant_id, [operation])
        if isinstance(outcome, Fault):
            raise outcome
        return outcome

    async def post_all(self, tenant_id: str, operations: Sequence[Operation], *, linked: bool = False) -> list[Any]:
        """An answer or a refusal for each; when they are linked, all are refused if one is.

        Raises DependencyUnavailable, Conflict or DeadlineExceeded when it is not known what became of them: the same
        keys find out.
        """
        job = _Job(operations, linked, asyncio.get_running_loop().create_future())
        if tenant_id in self._waiting:
            self._waiting[tenant_id].append(job)
        else:
            self._waiting[tenant_id] = deque([job])
            # In a context of its own: the writer serves many calls and is part of none.
            self._writers[tenant_id] = asyncio.create_task(
                self._write_all(tenant_id), context=contextvars.Context(), name=f"ledger of {tenant_id}"
            )
        return await job.answer

    async def _write_all(self, tenant_id: str) -> None:
        waiting = self._waiting[tenant_id]
        try:
            while waiting:
                await asyncio.sleep(0)  # all that have arrived by now come along
                await self._write(tenant_id, self._take(waiting))
        finally:
            del self._waiting[tenant_id], self._writers[tenant_id]

    def _take(self, waiting: deque[_Job]) -> list[_Job]:
        jobs: list[_Job] = []
        size = 0
        while waiting and (not jobs or size + len(waiting[0].operations) <= self._batch_size):
            job = waiting.popleft()
            if not job.answer.cancelled():  # nobody waits for it any more
                jobs.append(job)
                size += len(job.operations)
        return jobs

    async def _write(self, tenant_id: str, jobs: Sequence[_Job]) -> None:
        try:
            outcomes = await self._commit(tenant_id, jobs)
        except Exception as error:
            if len(jobs) > 1 and not isinstance(error, _AWAY):
                logger.warning("a batch failed and is tried one by one: %s", error, extra={"tenant": tenant_id})
                for job in jobs:
                    await self._write(tenant_id, [job])
                return
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)
        else:
            for job, outcome in zip(jobs, outcomes, strict=True):
                if not job.answer.done():
                    job.answer.set_result(outcome)

    async def _commit(self, tenant_id: str, jobs: Sequence[_Job]) -> list[list[Any]]:
        needs = Needs()
        for job in jobs:
            for operation in job.operations:
                operation.name_needs(needs)
                if operation.cause.key:
                    needs.keys.add((operation.cause.actor, operation.cause.key))
        with acting_for(tenant_id):
            async with self._database.transaction():
                head = await self._store.lock_head()
                books = await self._store.books(tenant_id, head, needs)
                outcomes = [_decide(books, job) for job in jobs]
                if books.entries:
                    await self._store.write(books, head["hash"])
                    await self._events.publish_all([told for entry in books.entries for told in _told(entry)])
        BATCH_SIZE.observe(sum(len(job.operations) for job in jobs))
        return outcomes


def _decide(books: Books, job: _Job) -> list[Any]:
    outcomes: list[Any] = []
    savepoint = books.savepoint()
    for index, operation in enumerate(job.operations):
        try:
            outcomes.append(perform(books, operation))
        except Fault as refusal:
            if job.linked:
                books.roll_back(savepoint)
                refused: list[Any] = [BatchRefused(index=index) for _ in job.operations]
                refused[index] = refusal
                return refused
            outcomes.append(refusal)
    return outcomes


def _told(entry: Entry) -> list[Occurrence]:
    """The event that tells other services of an entry, if any."""
    change, cause = entry.change, entry.cause
    event: Message
    match change.WhichOneof("kind"):
        case "transaction_posted":
            event, aggregate = change.transaction_posted, change.transaction_posted.transaction.transaction_id
        case "hold_placed":
            event, aggregate = change.hold_placed, change.hold_placed.hold.hold_id
        case "hold_released":
            event, aggregate = change.hold_released, change.hold_released.hold_id
        case _:
            return []
    return [Occurrence(event, aggregate, cause.actor, cause.request_id)]
