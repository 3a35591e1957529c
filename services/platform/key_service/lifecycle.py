"""A key's life: enabled ⇄ disabled → destroying (and back to disabled) → destroyed. What may be done when."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from nexus.platform.key_service.v1.faults import (
    AlgorithmUnsuitable,
    DelayTooShort,
    DestructionNotScheduled,
    KeyNotUsable,
    KeyOfService,
    OlderCiphertextsRemain,
    VersionNotFound,
    VersionTooOld,
)
from services.platform.key_service.material import Algorithm

PEOPLE = ""
"""The owner of the keys that a tenant's people make and use."""


class State(StrEnum):
    ENABLED = "enabled"
    DISABLED = "disabled"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"


@dataclass(frozen=True)
class Key:
    tenant_id: str
    key_id: str
    owner: str
    name: str
    subject: str
    algorithm: Algorithm
    state: State
    primary_version: int
    minimum_version: int
    rotation_period: timedelta | None
    next_rotation_time: datetime | None
    create_time: datetime
    destroy_time: datetime | None

    def require_state(self, *states: State) -> None:
        if self.state not in states:
            raise KeyNotUsable(key=self.key_id, state=self.state)

    def require_purpose(self, purpose: str) -> None:
        if self.algorithm.purpose != purpose:
            raise AlgorithmUnsuitable(algorithm=self.algorithm.name, operation=purpose)

    def require_algorithm(self, algorithm: Algorithm) -> None:
        if self.algorithm is not algorithm:
            raise AlgorithmUnsuitable(algorithm=self.algorithm.name, operation=f"work as one for {algorithm.name}")

    def require_version(self, version: int) -> None:
        """That it may open and verify with this version."""
        if version > self.primary_version:
            raise VersionNotFound(key=self.key_id, version=version)
        if version < self.minimum_version:
            raise VersionTooOld(key=self.key_id, version=version, minimum_version=self.minimum_version)

    def require_people(self) -> None:
        """That it is not a service's, whose data would be lost or read with it."""
        if self.owner != PEOPLE:
            raise KeyOfService(key=self.key_id, owner=self.owner)

    def check_minimum(self, minimum_version: int, older_ciphertexts: int, *, abandon_older: bool) -> None:
        """That versions below this one can be retired."""
        self.require_people()
        self.require_state(State.ENABLED, State.DISABLED)
        if minimum_version > self.primary_version:
            raise VersionNotFound(key=self.key_id, version=minimum_version)
        if older_ciphertexts and not abandon_older:
            raise OlderCiphertextsRemain(count=older_ciphertexts)

    def check_destruction(self, delay: timedelta, shortest: timedelta) -> None:
        self.require_people()
        self.require_state(State.ENABLED, State.DISABLED, State.DESTROYING)
        if delay < shortest:
            raise DelayTooShort(minimum_seconds=round(shortest.total_seconds()))

    def check_cancel(self) -> None:
        self.require_people()
        if self.state is not State.DESTROYING:
            raise DestructionNotScheduled(key=self.key_id)
