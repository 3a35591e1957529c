"""The settings there are: their keys, types, bounds, and the levels at which they may be set."""

import re
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from nexus.modules.puabo_os.v1.faults import SettingInvalid, SettingUnknown

Value = bool | int | str
PLATFORM, TENANT, USER = "platform", "tenant", "user"
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-([A-Z]{2}|[0-9]{3}))?")  # BCP 47: language, script, region


@dataclass(frozen=True)
class Key:
    """One setting."""

    key: str
    title: str
    default: Value
    """Its type is the setting's."""
    levels: tuple[str, ...]
    """The levels at which it may be set, the weakest first."""
    problem: Callable[[Value], str | None] = lambda _: None
    """What is wrong with a value of the right type."""

    def check(self, value: Value, level: str) -> None:
        """Raises SettingInvalid."""
        kinds = {bool: "flag", int: "number", str: "text"}
        why = self.problem(value) if type(value) is type(self.default) else f"it is a {kinds[type(self.default)]}"
        if level not in self.levels:
            why = f"a {level} cannot set it"
        if why:
            raise SettingInvalid(key=self.key, why=why)

    def effective(self, said: Mapping[str, Value]) -> tuple[Value, str | None]:
        """The value in effect and the level it comes from, None for the default. `said` is by level."""
        for level in reversed(self.levels):
            if level in said:
                return said[level], level
        return self.default, None


def _between(low: int, high: int) -> Callable[[Value], str | None]:
    return lambda value: None if low <= int(value) <= high else f"it must lie between {low} and {high}"


def _one_of(*choices: str) -> Callable[[Value], str | None]:
    return lambda value: None if value in choices else f"it must be one of {', '.join(choices)}"


def _language(value: Value) -> str | None:
    return None if _LANGUAGE.fullmatch(str(value)) else 'it must be a language such as "en" or "pt-BR"'


def _time_zone(value: Value) -> str | None:
    return None if value in _time_zones() else 'it must be a time zone such as "Europe/Berlin"'


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


_ALL = (PLATFORM, TENANT, USER)
_RULES = (PLATFORM, TENANT)
KEYS = {
    key.key: key
    for key in (
        Key("security.registration", "Who may register", "open", _RULES, _one_of("open", "closed")),
        Key(
            "security.require_mfa",
            "Whether everybody must prove two factors to sign in, here or at an upstream provider",
            False,
            _RULES,
        ),
        Key(
            "security.session_idle_minutes", "Minutes until an unused session ends", 20160, _RULES, _between(5, 525600)
        ),
        Key("ui.language", "Language", "en", _ALL, _language),
        Key("ui.theme", "Theme", "system", _ALL, _one_of("system", "light", "dark")),
        Key("ui.time_zone", "Time zone", "UTC", _ALL, _time_zone),
        Key("notifications.mail", "Whether to send mails about news", True, _ALL),
    )
}
"""Every setting by key."""


def require(key: str) -> Key:
    """Raises SettingUnknown."""
    found = KEYS.get(key)
    if found is None:
        raise SettingUnknown(key=key)
    return found
