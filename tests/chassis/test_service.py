"""What the servicers of one running service have together."""

from services.chassis.service import Service
from tests.chassis.calls import unconnected_service


class UseCases:
    def __init__(self, service: Service) -> None:
        self.service = service


def test_what_is_shared_is_made_once_for_each_service() -> None:
    one, other = unconnected_service(), unconnected_service()
    assert one.shared(UseCases) is one.shared(UseCases)
    assert one.shared(UseCases).service is one
    assert other.shared(UseCases) is not one.shared(UseCases)


def test_a_function_makes_what_is_shared_as_well_as_a_class() -> None:
    one = unconnected_service()

    def made(service: Service) -> list[Service]:
        return [service]

    assert one.shared(made) is one.shared(made)
    assert one.shared(made) == [one]
