"""A callee that does not answer is left alone, and tried again in small steps."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.chassis.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.admit()
        breaker.failed()
    return breaker


def test_five_failures_in_a_row_open_it() -> None:
    breaker = Breaker(Clock())
    for _ in range(4):
        assert breaker.admit()
        breaker.failed()
    assert not breaker.is_open
    assert breaker.admit()
    breaker.failed()
    assert breaker.is_open
    assert not breaker.admit()


def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker = Breaker(Clock())
    for _ in range(3):
        for _ in range(4):
            breaker.failed()
        breaker.succeeded()
    assert not breaker.is_open


def test_after_thirty_seconds_one_call_at_a_time_may_probe() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.time += 29.9
    assert not breaker.admit()
    clock.time += 0.1
    assert breaker.admit()
    assert not breaker.admit(), "a second probe while the first is under way"
    breaker.succeeded()
    assert breaker.admit(), "the next probe"


def test_three_successes_close_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.time += 30
    for _ in range(3):
        assert breaker.is_open
        assert breaker.admit()
        breaker.succeeded()
    assert not breaker.is_open
    assert breaker.admit()
    assert breaker.admit(), "a closed breaker admits any number at once"


def test_a_failed_probe_waits_again_and_forgets_the_successes() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.time += 30
    for _ in range(2):
        breaker.admit()
        breaker.succeeded()
    breaker.admit()
    breaker.failed()
    clock.time += 29.9
    assert not breaker.admit()
    clock.time += 0.1
    for _ in range(2):
        assert breaker.admit()
        breaker.succeeded()
    assert breaker.is_open


def test_a_probe_whose_caller_gave_up_makes_room_for_the_next() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.time += 30
    assert breaker.admit()
    breaker.abandoned()
    assert breaker.is_open
    assert breaker.admit()


def test_a_callee_that_is_back_need_not_wait() -> None:
    breaker = opened(Clock())
    breaker.is_back()
    for _ in range(3):
        assert breaker.is_open
        assert breaker.admit()
        assert not breaker.admit(), "also then one probe at a time"
        breaker.succeeded()
    assert not breaker.is_open


def test_a_callee_that_is_back_and_fails_again_waits_again() -> None:
    breaker = opened(Clock())
    breaker.is_back()
    breaker.admit()
    breaker.failed()
    assert not breaker.admit()


class Calls(RuleBasedStateMachine):
    """Any interleaving of calls: never two probes, never shut for ever, never open without five failures."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.back = False
        self.breaker = Breaker(self.clock)
        self.out = 0
        """Calls that are under way."""
        self.probes = 0
        """How many of them were admitted while it was open."""
        self.failures = 0
        self.last_failure = 0.0

    @rule()
    def call(self) -> None:
        was_open = self.breaker.is_open
        if self.breaker.admit():
            self.out += 1
            self.probes += was_open
            waited = self.clock.time - self.last_failure >= 30
            assert not was_open or waited or self.back
        else:
            assert was_open

    @precondition(lambda self: self.out > 0)
    @rule(how=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def end(self, how: str) -> None:
        self.out -= 1
        self.probes = 0
        getattr(self.breaker, how)()
        if how == "failed":
            self.failures += 1
            self.last_failure = self.clock.time
            self.back = False
        elif how == "succeeded":
            self.failures = 0

    @rule(seconds=st.sampled_from([0.1, 10, 29.9, 30, 1000]))
    def wait(self, seconds: float) -> None:
        self.clock.time += seconds

    @rule()
    def come_back(self) -> None:
        self.breaker.is_back()
        self.back = True

    @invariant()
    def one_probe_at_a_time(self) -> None:
        assert self.probes <= 1

    @invariant()
    def five_failures_in_a_row_are_enough(self) -> None:
        if self.failures >= 5:
            assert self.breaker.is_open

    def teardown(self) -> None:
        """A callee that is well again is always called again."""
        for _ in range(self.out):
            self.breaker.abandoned()
        self.clock.time += 30
        for _ in range(3):
            if self.breaker.is_open:
                assert self.breaker.admit()
                self.breaker.succeeded()
        assert not self.breaker.is_open


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
