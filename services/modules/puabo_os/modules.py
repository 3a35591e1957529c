"""The modules of the platform. A module grants the permissions that the contracts of its services name."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from nexus.modules.puabo_os.v1.faults import ModuleUnknown
from services.chassis import contract

EVERYTHING = "*"
_IDENTITY = ("auth-service", "auth-service-v2", "user-auth", "session-mgr", "token-mgr")
_PLATFORM = ("backend-api", "key-service", "pv-keys", "glitch", "scheduler")
_NUKI = tuple(f"puabo-nuki-{name}" for name in ("product-catalog", "inventory-mgr", "order-processor"))
_NEXUS = tuple(f"puabo-nexus-{name}" for name in ("driver-app-backend", "fleet-manager", "route-optimizer"))
_DSP = tuple(f"puabo-dsp-{name}" for name in ("streaming-api", "metadata-mgr", "upload-mgr"))
_STREAMS = ("streamcore", "streaming-service-v2")
_MONEY = ("billing-service", "invoice-gen", "ledger-mgr")


@dataclass(frozen=True)
class Module:
    """A bundle of services that a tenant switches on."""

    module_id: str
    title: str
    services: tuple[str, ...]
    essential: bool = False
    """Always on: nobody could sign in or switch anything on without it."""

    @property
    def permissions(self) -> frozenset[str]:
        return frozenset().union(*(_permissions().get(service, frozenset()) for service in self.services))


MODULES = {
    module.module_id: module
    for module in (
        Module("core-os", "Core OS", _IDENTITY + _PLATFORM, essential=True),
        Module("puabo-os", "Puabo OS v2", ("puabo-os",), essential=True),
        Module("casino-nexus", "Casino Nexus", ("casino-nexus", *_MONEY)),
        Module("gamecore", "GameCore", ("gamecore", "ledger-mgr")),
        Module("puaboverse", "Puaboverse", ("puaboverse-v2", "metatwin", "ai-service", "content-management")),
        Module("puabo-nexus", "Puabo Nexus", ("puabo-nexus", "puabo-nexus-ai-dispatch", *_NEXUS, *_MONEY)),
        Module("puabo-studio", "Puabo Studio", ("puabo-studio", "content-management", "creator-hub-v2", *_STREAMS)),
        Module("puabo-dsp", "Puabo DSP", ("streamcore", "content-management", *_DSP)),
        Module(
            "puabo-blac",
            "Puabo BLAC",
            ("puabo-blac-loan-processor", "puabo-blac-risk-assessment", "ai-service", *_MONEY),
        ),
        Module("puabo-nuki", "Puabo NUKI", (*_NUKI, "puabo-nuki-shipping-service", *_MONEY)),
        Module("puabo-ott", "Puabo OTT TV", ("puabo-ott", "streamcore", "content-management", *_MONEY)),
        Module("musicchain", "MusicChain", ("puabomusicchain", "content-management", *_MONEY)),
        Module(
            "v-suite",
            "V-Suite",
            ("v-caster-pro", "v-prompter-pro", "v-screen-pro", "vscreen-hollywood", "content-management", *_STREAMS),
        ),
        Module("streamcore", "StreamCore", ("content-management", "boom-boom-room-live", *_STREAMS)),
        Module(
            "nexus-studio-ai",
            "Nexus Studio AI",
            ("nexus-cos-studio-ai", "kei-ai", "ai-service", "puaboai-sdk", "content-management"),
        ),
        Module("club-saditty", "Club Saditty", ("club-saditty", *_MONEY)),
    )
}
"""The sixteen modules by id."""


def require(module_id: str) -> Module:
    """Raises ModuleUnknown."""
    module = MODULES.get(module_id)
    if module is None:
        raise ModuleUnknown(module_id=module_id)
    return module


def in_plan(module: Module, plan: Iterable[str]) -> bool:
    """Whether a plan with these modules has the module. `plan` may be {"*"}."""
    return module.essential or bool({module.module_id, EVERYTHING} & set(plan))


def switched_on(enabled: Iterable[str], plan: Iterable[str]) -> list[Module]:
    """The modules that are on: the essential ones, and those switched on that the plan still has."""
    chosen = set(enabled)
    return [
        module
        for module in MODULES.values()
        if module.essential or (module.module_id in chosen and in_plan(module, plan))
    ]


def entitled(held: Iterable[str], modules: Iterable[Module]) -> list[str]:
    """Those of a user's permissions that count where these modules are on, sorted.

    "*" stays one word only where it means nothing else than all that is granted.
    """
    on = list(modules)
    permissions = set(held)
    if EVERYTHING in permissions and len(on) == len(MODULES):
        return [EVERYTHING]
    granted: frozenset[str] = frozenset().union(*(module.permissions for module in on))
    return sorted(granted if EVERYTHING in permissions else granted & permissions)


@cache
def _permissions() -> dict[str, frozenset[str]]:
    """The permissions that the contracts of each service name, but for those that reach beyond a tenant."""
    found: dict[str, set[str]] = {}
    for method in contract.methods().values():
        if method.policy.permission and method.tenant_scoped:
            found.setdefault(method.service_id, set()).add(method.policy.permission)
    return {service: frozenset(names) for service, names in found.items()}
