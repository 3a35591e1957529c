"""A circuit breaker: stops calling what does not answer, and tries it again in small steps."""

import time
from collections.abc import Callable

FAILURES_TO_OPEN = 5
OPEN_SECONDS = 30.0
SUCCESSES_TO_CLOSE = 3


class Breaker:
    """Closed, open, or half-open for one callee. Not for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._successes = 0
        self._opened: float | None = None
        self._back = False
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    def admit(self) -> bool:
        """Whether a call may go out now. In the half-open state one does at a time."""
        if self._opened is None:
            return True
        waited = self._clock() - self._opened >= OPEN_SECONDS
        if self._probing or not (waited or self._back):
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._probing = False
        if self._opened is not None:
            self._successes += 1
            if self._successes >= SUCCESSES_TO_CLOSE:
                self._opened = None

    def failed(self) -> None:
        self._failures += 1
        self._successes = 0
        self._back = False
        self._probing = False
        if self._opened is not None or self._failures >= FAILURES_TO_OPEN:
            self._opened = self._clock()

    def is_back(self) -> None:
        """The callee, which was away, is there again: no reason to wait further."""
        self._back = True

    def abandoned(self) -> None:
        """The call ended without saying anything of the callee: its caller gave up."""
        self._probing = False
