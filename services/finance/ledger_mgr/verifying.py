"""Whether a log holds: its chain of hashes, and that the balances follow from it and from nothing else."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from nexus.finance.ledger_mgr.v1.events_pb2 import Change
from services.chassis.clock import timestamp
from services.finance.ledger_mgr import chain
from services.finance.ledger_mgr.books import NOTHING, Balance, Books


@dataclass
class Verification:
    """Plays a log from its beginning, some entries at a time."""

    tenant_id: str
    position: int = 0
    hash: bytes = chain.START
    broken_at: int = 0
    """The first entry that is not as it was, or does not follow the one before; 0 for none."""
    books: Books = field(init=False)

    def __post_init__(self) -> None:
        self.books = Books(self.tenant_id, Timestamp())

    def play(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """The next entries, as rows of the log. After the first broken one, the rest tells nothing."""
        for entry in entries:
            if self.broken_at:
                return
            expected = chain.link(
                self.hash,
                self.tenant_id,
                self.position + 1,
                timestamp(entry["create_time"]).ToMicroseconds(),
                entry["actor"],
                entry["idempotency_key"],
                entry["request_hash"],
                entry["change"],
            )
            self.position += 1
            if entry["position"] != self.position or entry["hash"] != expected:
                self.broken_at = self.position
                return
            self.hash = expected
            self.books.evolve(Change.FromString(entry["change"]))
        self.books.forget_details()

    def end(self, position: int, head_hash: bytes) -> None:
        """Where the ledger says that the log ends: nothing is missing there."""
        if not self.broken_at and (self.position, self.hash) != (position, head_hash):
            self.broken_at = self.position + 1

    def differing(self, balances: Mapping[tuple[str, str], Balance]) -> list[str]:
        """The accounts whose balances are not what the log says, by name."""
        ours = self.books.balances
        places = {*balances, *ours}
        return sorted({place[0] for place in places if balances.get(place, NOTHING) != ours.get(place, NOTHING)})
