"""The tenant's accounts at payment providers, and the providers themselves."""

import hashlib
from collections import OrderedDict

from google.protobuf.message import Message

from nexus.finance.billing_service.v1.customers_pb2 import PaypalAccount, SandboxAccount, StripeAccount
from nexus.finance.billing_service.v1.faults import ProviderNotConfigured, ProviderRefusedAccount
from services.chassis.context import current_tenant
from services.chassis.service import Service
from services.finance.billing_service.payments import may_charge
from services.finance.billing_service.providers.interface import InDoubt, Provider, Refused
from services.finance.billing_service.providers.paypal import PaypalProvider
from services.finance.billing_service.providers.sandbox import SandboxProvider
from services.finance.billing_service.providers.stripe import StripeProvider
from services.finance.billing_service.spec import ACCOUNTS, Config
from services.finance.billing_service.store import Store

_REMEMBER = 500


class Accounts:
    def __init__(self, service: Service, store: Store) -> None:
        self._config: Config = service.config
        self._production = service.settings.environment == "production"
        self._database = service.database
        self._sealer = service.sealer
        self._store = store
        self._sandbox = SandboxProvider(service.database, self._config.sandbox_hang_seconds)
        self._made: OrderedDict[tuple[str, bytes], Provider] = OrderedDict()

    async def provider(self, name: str) -> Provider:
        """To go on with what has begun. Raises ProviderNotConfigured. The sandbox needs no account."""
        if name == "SANDBOX":
            return self._sandbox
        row = await self._store.accounts.require(name)
        account = self._sealer.open(row["account_sealed"], ACCOUNTS.purpose_of(current_tenant(), name))
        known = (f"{current_tenant()} {name}", hashlib.sha256(account).digest())
        if known not in self._made:
            self._made[known] = self._make(name, account)
            while len(self._made) > _REMEMBER:
                self._made.popitem(last=False)
        self._made.move_to_end(known)
        return self._made[known]

    async def require_chargeable(self, name: str) -> None:
        """Before anything new is begun. Raises ProviderNotConfigured where customers may not pay through a provider."""
        accounts = [row["provider"] for row in await self._store.accounts.all()]
        if not may_charge(name, accounts, production=self._production):
            raise ProviderNotConfigured(provider=name)

    async def default(self) -> str:
        row = await self._store.accounts.find(is_default=True)
        return row["provider"] if row is not None else "SANDBOX"

    async def set(self, name: str, account: Message, *, make_default: bool) -> bool:
        """Returns whether it is the default now, as the first one is. Raises ProviderRefusedAccount."""
        serialized = account.SerializeToString()
        candidate = self._make(name, serialized)
        try:
            await candidate.check()
        except (Refused, InDoubt) as error:
            raise ProviderRefusedAccount(provider=name) from error
        finally:
            await candidate.close()
        sealed = self._sealer.seal(serialized, ACCOUNTS.purpose_of(current_tenant(), name))
        async with self._database.transaction():
            default = await self._store.accounts.find(is_default=True, lock=True)
            is_default = make_default or default is None or default["provider"] == name
            if is_default and default is not None:
                await self._store.accounts.change(default["provider"], is_default=False)
            await self._store.accounts.put(provider=name, account_sealed=sealed, is_default=is_default)
        return is_default

    def _make(self, name: str, account: bytes) -> Provider:
        config = self._config
        match name:
            case "STRIPE":
                return StripeProvider(StripeAccount.FromString(account), config.stripe_url, config.provider_timeout)
            case "PAYPAL":
                return PaypalProvider(PaypalAccount.FromString(account), config.paypal_url, config.provider_timeout)
        SandboxAccount.FromString(account)
        return self._sandbox
