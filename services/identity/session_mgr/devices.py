"""Where sessions were opened, by which client and from which address: sealed with a key of each user's own."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexus.platform.key_service.v1.faults import SubjectShredded
from nexus.type.v1.faults import DeadlineExceeded, DependencyUnavailable
from services.chassis.fields import FieldCipher

_FIELD = "sessions.device"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    user_agent: str = ""
    ip_address: str = ""


UNKNOWN = Device()


class Devices:
    """Of sessions of the call's tenant."""

    def __init__(self, cipher: FieldCipher) -> None:
        self._cipher = cipher

    async def seal(self, user_id: str, device: Device) -> bytes:
        text = json.dumps([device.user_agent, device.ip_address])
        return await self._cipher.seal(text.encode(), subject=user_id, field=_FIELD)

    async def seal_if_possible(self, user_id: str, device: Device) -> bytes | None:
        """None while key-service is away: better to forget a device than to let nobody sign in. Nor has a user one who
        is erased at this moment; their session will not be confirmed."""
        try:
            return await self.seal(user_id, device)
        except (DependencyUnavailable, DeadlineExceeded, SubjectShredded) as error:
            logger.warning("a session forgets its device: %s", error)
            return None

    async def of(self, sessions: Sequence[Mapping[str, Any]]) -> list[Device]:
        """In the order of the sessions."""
        sealed = [(row["user_id"], row["device_sealed"]) for row in sessions if row["device_sealed"] is not None]
        opened = iter(await self._cipher.open_rows(sealed, field=_FIELD))
        return [_unsealed(row) if row["device_sealed"] is None else _device(next(opened)) for row in sessions]


def _unsealed(row: Mapping[str, Any]) -> Device:
    return Device(row["user_agent"] or "", row["ip_address"] or "")


def _device(text: bytes | None) -> Device:
    return Device(*json.loads(text)) if text is not None else UNKNOWN
