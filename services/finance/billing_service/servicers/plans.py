"""BillingPlanService: plans, prices, coupons."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from nexus.finance.billing_service.v1 import plans_pb2 as pb
from nexus.finance.billing_service.v1.faults import CouponCodeTaken, PlanChanged, PlanKeyTaken
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf, moment_in, text_of, values_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.finance.billing_service import rating
from services.finance.billing_service.store import Store

_plan = MessageOf(pb.Plan)
_price = MessageOf(pb.Price, interval="interval_unit")
_coupon_of = MessageOf(pb.Coupon, redeem_until_time="redeem_until")


class BillingPlanService:
    def __init__(self, service: Service) -> None:
        self._store = Store(service.database)
        self._pager = Pager(service.sealer)

    async def CreatePlan(self, request: pb.CreatePlanRequest, call: RequestContext) -> pb.CreatePlanResponse:
        row = await self._store.plans.insert_new(
            plan_id=new_id(), **values_of(request, "key", "name", "description", "features")
        )
        if row is None:
            raise PlanKeyTaken(key=request.key)
        return pb.CreatePlanResponse(plan=_plan(row, prices=()))

    async def GetPlan(self, request: pb.GetPlanRequest, call: RequestContext) -> pb.GetPlanResponse:
        [plan] = await self._with_prices([await self._store.plans.require(request.plan_id)])
        return pb.GetPlanResponse(plan=plan)

    async def ListPlans(self, request: pb.ListPlansRequest, call: RequestContext) -> pb.ListPlansResponse:
        rows, more = await self._pager.page(request, call, partial(self._store.plans.page, archived=False), by="key")
        return pb.ListPlansResponse(plans=await self._with_prices(rows), next_page_token=more)

    async def UpdatePlan(self, request: pb.UpdatePlanRequest, call: RequestContext) -> pb.UpdatePlanResponse:
        row = await self._store.plans.update(
            request.plan_id, etag=request.etag, **values_of(request, "name", "description", "features")
        )
        if row is None:
            await self._store.plans.require(request.plan_id)
            raise PlanChanged()
        return pb.UpdatePlanResponse(plan=(await self._with_prices([row]))[0])

    async def ArchivePlan(self, request: pb.ArchivePlanRequest, call: RequestContext) -> pb.ArchivePlanResponse:
        await self._store.plans.update(request.plan_id, archived=True)
        [plan] = await self._with_prices([await self._store.plans.require(request.plan_id)])
        return pb.ArchivePlanResponse(plan=plan)

    async def AddPrice(self, request: pb.AddPriceRequest, call: RequestContext) -> pb.AddPriceResponse:
        await self._store.plans.require(request.plan_id)
        for usage_price in request.usage_prices:
            rating.require_sound(usage_price)
            await self._store.meters.require(usage_price.meter_key)
        row = await self._store.prices.insert(
            price_id=new_id(),
            currency=request.fee.currency,
            fee=request.fee.minor_units,
            interval_unit=text_of(pb.Interval, request.interval),
            interval_count=request.interval_count or 1,
            **values_of(request, "plan_id", "trial_days", "usage_prices"),
        )
        return pb.AddPriceResponse(price=_price(row))

    async def ArchivePrice(self, request: pb.ArchivePriceRequest, call: RequestContext) -> pb.ArchivePriceResponse:
        await self._store.prices.update(request.price_id, archived=True)
        return pb.ArchivePriceResponse(price=_price(await self._store.prices.require(request.price_id)))

    async def CreateCoupon(self, request: pb.CreateCouponRequest, call: RequestContext) -> pb.CreateCouponResponse:
        row = await self._store.coupons.insert_new(
            coupon_id=new_id(),
            currency=request.amount.currency,
            amount=request.amount.minor_units,
            redeem_until=moment_in(request, "redeem_until_time"),
            **values_of(request, "code", "name", "basis_points", "bills", "max_redemptions"),
        )
        if row is None:
            raise CouponCodeTaken()
        return pb.CreateCouponResponse(coupon=_coupon(row))

    async def ListCoupons(self, request: pb.ListCouponsRequest, call: RequestContext) -> pb.ListCouponsResponse:
        rows, more = await self._pager.page(request, call, self._store.coupons.page, by="code")
        return pb.ListCouponsResponse(coupons=map(_coupon, rows), next_page_token=more)

    async def ArchiveCoupon(self, request: pb.ArchiveCouponRequest, call: RequestContext) -> pb.ArchiveCouponResponse:
        await self._store.coupons.update(request.coupon_id, archived=True)
        return pb.ArchiveCouponResponse(coupon=_coupon(await self._store.coupons.require(request.coupon_id)))

    async def _with_prices(self, plans: Sequence[Row]) -> list[pb.Plan]:
        prices: defaultdict[str, list[pb.Price]] = defaultdict(list)
        for price in await self._store.prices_of([plan["plan_id"] for plan in plans]):
            prices[price["plan_id"]].append(_price(price))
        return [_plan(plan, prices=prices[plan["plan_id"]]) for plan in plans]


def _coupon(row: Row) -> pb.Coupon:
    if row["basis_points"]:
        return _coupon_of(row, amount=None)
    return _coupon_of(row, basis_points=None)
