from tests.platform.conftest import eventually_async

__all__ = ["eventually_async"]
