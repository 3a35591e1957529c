"""Tenants, modules, plans, quotas and settings: proto to rules and back."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from google.protobuf.message import Message
from redis.exceptions import RedisError

from nexus.modules.puabo_os.v1 import events_pb2, modules_pb2, plans_pb2, quotas_pb2, settings_pb2, tenants_pb2
from nexus.modules.puabo_os.v1.faults import (
    ErasureUnconfirmed,
    EtagStale,
    ModuleEssential,
    ModuleNotInPlan,
    PlanTaken,
    QuotaExceeded,
    TenantStateWrong,
    TenantTaken,
)
from nexus.type.v1.faults import DependencyUnavailable
from services.chassis.clock import now
from services.chassis.context import RequestContext, acting_for
from services.chassis.messages import MessageOf, text_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.signals import EVERY_TENANT, Signals
from services.chassis.table import Row
from services.modules.puabo_os import modules, quotas, settings, tenants
from services.modules.puabo_os.spec import Config
from services.modules.puabo_os.store import (
    NO_ETAG,
    PlanStore,
    SettingStore,
    TenantStore,
    UsageStore,
    json_of,
    quotas_of,
)

_FINISH_ERASURES_SECONDS = 2.0
_FORGET_USAGE_SECONDS = 3600.0
_STANDARD_PLAN = "standard"

_tenant_of = MessageOf(tenants_pb2.Tenant)
_plan_of = MessageOf(plans_pb2.Plan)
_quota = MessageOf(plans_pb2.Quota)
_usage_of = MessageOf(quotas_pb2.Usage)
_module_of = MessageOf(modules_pb2.Module)


class TenantService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._database = service.database
        self._events = service.events
        self._signals = service.signals
        self._platform_tenant = service.settings.platform_tenant
        self._store = TenantStore(service.database)
        self._pager = Pager(service.sealer)
        service.every(_FINISH_ERASURES_SECONDS, self._finish_erasures)

    async def CreateTenant(
        self, request: tenants_pb2.CreateTenantRequest, call: RequestContext
    ) -> tenants_pb2.CreateTenantResponse:
        plan_id = request.plan_id or _STANDARD_PLAN
        with acting_for(self._platform_tenant):
            async with self._database.transaction():
                tenant = await self._store.insert_new(request.tenant_id, request.display_name, plan_id)
                if tenant is not None:
                    created = events_pb2.TenantCreated(
                        tenant_id=request.tenant_id, display_name=request.display_name, plan_id=plan_id
                    )
                    await self._events.publish(created, request.tenant_id)
        if tenant is None:
            tenant = await self._store.rows.require(request.tenant_id)
            if (tenant["display_name"], tenant["plan_id"]) != (request.display_name, plan_id):
                raise TenantTaken(tenant_id=request.tenant_id)
        return tenants_pb2.CreateTenantResponse(tenant=await self._tenant(tenant))

    async def GetTenant(
        self, request: tenants_pb2.GetTenantRequest, call: RequestContext
    ) -> tenants_pb2.GetTenantResponse:
        tenant = await self._store.rows.require(request.tenant_id)
        return tenants_pb2.GetTenantResponse(tenant=await self._tenant(tenant))

    async def ListTenants(
        self, request: tenants_pb2.ListTenantsRequest, call: RequestContext
    ) -> tenants_pb2.ListTenantsResponse:
        state = text_of(tenants_pb2.TenantState, request.state).lower()
        fetch = partial(self._store.rows.page, state=state or None)
        rows, more = await self._pager.page(request, call, fetch, by="tenant_id")
        return tenants_pb2.ListTenantsResponse(
            tenants=[await self._tenant(tenant) for tenant in rows], next_page_token=more
        )

    async def UpdateTenant(
        self, request: tenants_pb2.UpdateTenantRequest, call: RequestContext
    ) -> tenants_pb2.UpdateTenantResponse:
        changed = set(request.update_mask.paths) or {"display_name", "plan_id"}

        async def update(tenant: Row) -> tuple[Row, Message]:
            if request.etag not in ("", tenant["etag"]):
                raise EtagStale()
            if tenant["state"] == tenants.ERASED:
                raise TenantStateWrong(tenant_id=request.tenant_id, state=tenants.ERASED, hint="only its id is left")
            name, plan_id = (
                (getattr(request, field) if field in changed else "") or tenant[field]
                for field in ("display_name", "plan_id")
            )
            updated = await self._store.set_name_and_plan(request.tenant_id, name, plan_id)
            return updated, events_pb2.TenantUpdated(tenant_id=request.tenant_id, plan_id=plan_id)

        return tenants_pb2.UpdateTenantResponse(tenant=await self._change(request.tenant_id, update))

    async def SuspendTenant(
        self, request: tenants_pb2.SuspendTenantRequest, call: RequestContext
    ) -> tenants_pb2.SuspendTenantResponse:
        async def suspend(tenant: Row) -> tuple[Row, Message] | None:
            if not tenants.suspend(request.tenant_id, tenant["state"], self._platform_tenant):
                return None
            suspended = await self._store.set_state(request.tenant_id, tenants.SUSPENDED)
            return suspended, events_pb2.TenantSuspended(tenant_id=request.tenant_id, why=request.why)

        return tenants_pb2.SuspendTenantResponse(tenant=await self._change(request.tenant_id, suspend))

    async def ResumeTenant(
        self, request: tenants_pb2.ResumeTenantRequest, call: RequestContext
    ) -> tenants_pb2.ResumeTenantResponse:
        async def resume(tenant: Row) -> tuple[Row, Message] | None:
            if not tenants.resume(request.tenant_id, tenant["state"], tenant["erase_time"], now()):
                return None
            resumed = await self._store.set_state(request.tenant_id, tenants.ACTIVE)
            return resumed, events_pb2.TenantResumed(tenant_id=request.tenant_id)

        return tenants_pb2.ResumeTenantResponse(tenant=await self._change(request.tenant_id, resume))

    async def EraseTenant(
        self, request: tenants_pb2.EraseTenantRequest, call: RequestContext
    ) -> tenants_pb2.EraseTenantResponse:
        if request.confirm_tenant_id != request.tenant_id:
            raise ErasureUnconfirmed()

        async def erase(tenant: Row) -> tuple[Row, Message] | None:
            if not tenants.erase(request.tenant_id, tenant["state"], self._platform_tenant):
                return None
            begin = tenants.erase_time(
                tenant["state_time"], self._config.erasure_quiet, now(), request.delay.ToTimedelta()
            )
            erasing = await self._store.set_state(request.tenant_id, tenants.ERASING, begin)
            return erasing, events_pb2.TenantErasureStarted(tenant_id=request.tenant_id)

        return tenants_pb2.EraseTenantResponse(tenant=await self._change(request.tenant_id, erase))

    async def _change(
        self,
        tenant_id: str,
        change: Callable[[Row], Awaitable[tuple[Row, Message] | None]],
    ) -> tenants_pb2.Tenant:
        """Change a tenant and publish the event in one transaction; then tell every process of it.

        It is told even where nothing had to change: the one who changed it may have failed to.
        """
        with acting_for(self._platform_tenant):
            async with self._database.transaction():
                tenant = await self._store.rows.require(tenant_id, lock=True)
                changed = await change(tenant)
                if changed is not None:
                    tenant, event = changed
                    await self._events.publish(event, tenant_id)
        await _tell(self._signals, tenant_id)
        return await self._tenant(tenant)

    async def _finish_erasures(self) -> None:
        for tenant_id in await self._store.begun_erasures():
            if await self._store.erasing_schemas(tenant_id):
                continue
            with acting_for(self._platform_tenant):
                async with self._database.transaction():
                    if await self._store.set_erased(tenant_id):
                        await self._events.publish(events_pb2.TenantErased(tenant_id=tenant_id), tenant_id)
            await self._signals.tenant_changed(tenant_id)

    async def _tenant(self, row: Row) -> tenants_pb2.Tenant:
        erasing = row["state"] == tenants.ERASING
        schemas = await self._store.erasing_schemas(row["tenant_id"]) if erasing else []
        return _tenant_of(row, erasing_schemas=schemas)


class ModuleService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._events = service.events
        self._platform_tenant = service.settings.platform_tenant
        self._store = PlanStore(service.database)

    async def ListModules(
        self, request: modules_pb2.ListModulesRequest, call: RequestContext
    ) -> modules_pb2.ListModulesResponse:
        plan, on = await self._switched_on()
        return modules_pb2.ListModulesResponse(
            modules=[_module(module, module in on, plan["modules"]) for module in modules.MODULES.values()]
        )

    async def EnableModule(
        self, request: modules_pb2.EnableModuleRequest, call: RequestContext
    ) -> modules_pb2.EnableModuleResponse:
        module = modules.require(request.module_id)
        plan = await self._store.of_tenant()
        if not modules.in_plan(module, plan["modules"]):
            raise ModuleNotInPlan(plan_id=plan["plan_id"], module_id=module.module_id)
        async with self._database.transaction():
            if not module.essential and await self._store.enable(module.module_id):
                await self._events.publish(events_pb2.ModuleEnabled(module_id=module.module_id), module.module_id)
        return modules_pb2.EnableModuleResponse(module=_module(module, True, plan["modules"]))

    async def DisableModule(
        self, request: modules_pb2.DisableModuleRequest, call: RequestContext
    ) -> modules_pb2.DisableModuleResponse:
        module = modules.require(request.module_id)
        if module.essential:
            raise ModuleEssential(module_id=module.module_id)
        async with self._database.transaction():
            if await self._store.disable(module.module_id):
                await self._events.publish(events_pb2.ModuleDisabled(module_id=module.module_id), module.module_id)
        plan = await self._store.of_tenant()
        return modules_pb2.DisableModuleResponse(module=_module(module, False, plan["modules"]))

    async def ResolveEntitlements(
        self, request: modules_pb2.ResolveEntitlementsRequest, call: RequestContext
    ) -> modules_pb2.ResolveEntitlementsResponse:
        plan, on = await self._switched_on()
        held = list(request.held_permissions)
        # Those who run the platform hold permissions that no module grants.
        is_platform = call.tenant_id == self._platform_tenant
        return modules_pb2.ResolveEntitlementsResponse(
            permissions=sorted(held) if is_platform else modules.entitled(held, on),
            modules=[module.module_id for module in on],
            plan_id=plan["plan_id"],
        )

    async def _switched_on(self) -> tuple[Row, list[modules.Module]]:
        plan = await self._store.of_tenant()
        return plan, modules.switched_on(await self._store.enabled_modules(), plan["modules"])


class PlanService:
    def __init__(self, service: Service) -> None:
        self._store = PlanStore(service.database)
        self._pager = Pager(service.sealer)

    async def CreatePlan(
        self, request: plans_pb2.CreatePlanRequest, call: RequestContext
    ) -> plans_pb2.CreatePlanResponse:
        plan_id, title = request.plan.plan_id, request.plan.title
        chosen, planned = _contents(request.plan)
        await self._store.rows.insert_new(plan_id=plan_id, title=title, modules=chosen, quotas=json_of(planned))
        row = await self._store.rows.require(plan_id)
        if (row["title"], row["modules"], quotas_of(row)) != (title, chosen, planned):
            raise PlanTaken(plan_id=plan_id)
        return plans_pb2.CreatePlanResponse(plan=_plan(row))

    async def GetPlan(self, request: plans_pb2.GetPlanRequest, call: RequestContext) -> plans_pb2.GetPlanResponse:
        return plans_pb2.GetPlanResponse(plan=_plan(await self._store.rows.require(request.plan_id)))

    async def ListPlans(self, request: plans_pb2.ListPlansRequest, call: RequestContext) -> plans_pb2.ListPlansResponse:
        rows, more = await self._pager.page(request, call, self._store.rows.page, by="plan_id")
        return plans_pb2.ListPlansResponse(plans=map(_plan, rows), next_page_token=more)

    async def UpdatePlan(
        self, request: plans_pb2.UpdatePlanRequest, call: RequestContext
    ) -> plans_pb2.UpdatePlanResponse:
        chosen, planned = _contents(request)
        row = await self._store.rows.update(
            request.plan_id, etag=request.etag, title=request.title, modules=chosen, quotas=json_of(planned)
        )
        if row is None:
            await self._store.rows.require(request.plan_id)
            raise EtagStale()
        return plans_pb2.UpdatePlanResponse(plan=_plan(row))

    async def DeletePlan(
        self, request: plans_pb2.DeletePlanRequest, call: RequestContext
    ) -> plans_pb2.DeletePlanResponse:
        await self._store.delete(request.plan_id)
        return plans_pb2.DeletePlanResponse()


class QuotaService:
    def __init__(self, service: Service) -> None:
        self._plans = PlanStore(service.database)
        self._usage = UsageStore(service.database)
        service.every(_FORGET_USAGE_SECONDS, self._usage.forget_old)

    async def ConsumeQuota(
        self, request: quotas_pb2.ConsumeQuotaRequest, call: RequestContext
    ) -> quotas_pb2.ConsumeQuotaResponse:
        quota, moment = await self._quota(request.counter), now()
        start, reset = quota.start(moment), quota.reset(moment)
        if request.HasField("present"):
            await self._usage.begin_total(quota, start, request.present)
        used = await self._usage.add(quota, start, request.amount)
        if used is None:
            raise QuotaExceeded(
                counter=quota.counter,
                limit=quota.limit,
                used=await self._usage.of(quota, start),
                amount=request.amount,
                retry_after=(reset - moment).total_seconds() if reset else None,
            )
        return quotas_pb2.ConsumeQuotaResponse(usage=_usage(quota, used))

    async def ReleaseQuota(
        self, request: quotas_pb2.ReleaseQuotaRequest, call: RequestContext
    ) -> quotas_pb2.ReleaseQuotaResponse:
        quota = await self._quota(request.counter)
        used = await self._usage.take_back(quota, quota.start(now()), request.amount)
        return quotas_pb2.ReleaseQuotaResponse(usage=_usage(quota, used))

    async def GetUsage(self, request: quotas_pb2.GetUsageRequest, call: RequestContext) -> quotas_pb2.GetUsageResponse:
        moment = now()
        planned = quotas_of(await self._plans.of_tenant())
        counted = await self._usage.counters(quotas.Quota("", quotas.MONTH, None).start(moment))
        names = sorted({quota.counter for quota in planned} | set(counted))
        found = [quotas.quota_of(name, planned) for name in names]
        return quotas_pb2.GetUsageResponse(
            usages=[_usage(quota, await self._usage.of(quota, quota.start(moment))) for quota in found]
        )

    async def _quota(self, counter: str) -> quotas.Quota:
        return quotas.quota_of(counter, quotas_of(await self._plans.of_tenant()))


class SettingService:
    def __init__(self, service: Service) -> None:
        self._signals = service.signals
        self._store = SettingStore(service.database)

    async def ListSettings(
        self, request: settings_pb2.ListSettingsRequest, call: RequestContext
    ) -> settings_pb2.ListSettingsResponse:
        return settings_pb2.ListSettingsResponse(settings=await self._in_effect(call.user.user_id))

    async def GetSetting(
        self, request: settings_pb2.GetSettingRequest, call: RequestContext
    ) -> settings_pb2.GetSettingResponse:
        setting = await self._one(settings.require(request.key), call.user.user_id)
        return settings_pb2.GetSettingResponse(setting=setting)

    async def SetPlatformSetting(
        self, request: settings_pb2.SetPlatformSettingRequest, call: RequestContext
    ) -> settings_pb2.SetPlatformSettingResponse:
        setting = await self._set(settings.PLATFORM, "", request)
        await _tell(self._signals, EVERY_TENANT)
        return settings_pb2.SetPlatformSettingResponse(setting=setting)

    async def SetTenantSetting(
        self, request: settings_pb2.SetTenantSettingRequest, call: RequestContext
    ) -> settings_pb2.SetTenantSettingResponse:
        setting = await self._set(settings.TENANT, "", request)
        await _tell(self._signals, call.tenant_id)
        return settings_pb2.SetTenantSettingResponse(setting=setting)

    async def SetMySetting(
        self, request: settings_pb2.SetMySettingRequest, call: RequestContext
    ) -> settings_pb2.SetMySettingResponse:
        setting = await self._set(settings.USER, call.user.user_id, request)
        return settings_pb2.SetMySettingResponse(setting=setting)

    async def ResolveSettings(
        self, request: settings_pb2.ResolveSettingsRequest, call: RequestContext
    ) -> settings_pb2.ResolveSettingsResponse:
        keys = [settings.require(key).key for key in request.keys]
        return settings_pb2.ResolveSettingsResponse(settings=await self._in_effect(request.user_id, keys))

    async def _in_effect(self, user_id: str, keys: Iterable[str] = ()) -> list[settings_pb2.Setting]:
        said = await self._store.said(user_id)
        wanted = sorted(set(keys) or settings.KEYS)
        return [_setting(settings.KEYS[key], said.get(key, {})) for key in wanted]

    async def _one(self, key: settings.Key, user_id: str) -> settings_pb2.Setting:
        said = (await self._store.said(user_id, key.key)).get(key.key, {})
        setting = _setting(key, said)
        for level in key.levels:
            value, etag = said.get(level, (None, NO_ETAG))
            setting.levels.add(level=_level(level), value=_value(value), etag=etag)
        return setting

    async def _set(self, level: str, user_id: str, request: Any) -> settings_pb2.Setting:
        key, value = settings.require(request.key), None
        if request.HasField("value"):
            value = getattr(request.value, request.value.WhichOneof("kind"))
            key.check(value, level)
        await self._store.put(level, user_id, key.key, value, request.etag)
        return await self._one(key, user_id)


async def _tell(signals: Signals, tenant_id: str) -> None:
    """Let every process forget what it remembers of a tenant."""
    try:
        await signals.tenant_changed(tenant_id)
    except (RedisError, OSError) as error:
        raise DependencyUnavailable(dependency="broker", retry_after=1) from error


def _module(module: modules.Module, enabled: bool, plan: Sequence[str]) -> modules_pb2.Module:
    return _module_of(
        vars(module),
        permissions=sorted(module.permissions),
        enabled=enabled,
        in_plan=modules.in_plan(module, plan),
    )


def _contents(plan: plans_pb2.Plan | plans_pb2.UpdatePlanRequest) -> tuple[list[str], list[quotas.Quota]]:
    """The modules and quotas of a plan. Raises ModuleUnknown, QuotaRepeated."""
    for module_id in plan.modules:
        if module_id != modules.EVERYTHING:
            modules.require(module_id)
    quotas.require_distinct([quota.counter for quota in plan.quotas])
    return sorted(set(plan.modules)), [
        quotas.Quota(quota.counter, text_of(plans_pb2.QuotaPeriod, quota.period).lower(), quota.limit)
        for quota in plan.quotas
    ]


def _plan(row: Row) -> plans_pb2.Plan:
    return _plan_of(row, quotas=[_quota(vars(quota)) for quota in quotas_of(row)])


def _usage(quota: quotas.Quota, used: int) -> quotas_pb2.Usage:
    return _usage_of({**vars(quota), "used": used, "reset_time": quota.reset(now())})


def _setting(key: settings.Key, said: Mapping[str, tuple[settings.Value, str]]) -> settings_pb2.Setting:
    value, level = key.effective({level: value for level, (value, _) in said.items()})
    return settings_pb2.Setting(key=key.key, title=key.title, value=_value(value), source=_level(level or "default"))


def _level(level: str) -> settings_pb2.SettingLevel.ValueType:
    return settings_pb2.SettingLevel.Value(f"SETTING_LEVEL_{level.upper()}")


def _value(value: settings.Value | None) -> settings_pb2.SettingValue | None:
    match value:
        case None:
            return None
        case bool():
            return settings_pb2.SettingValue(flag=value)
        case int():
            return settings_pb2.SettingValue(number=value)
    return settings_pb2.SettingValue(text=value)
