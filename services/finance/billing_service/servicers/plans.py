"""BillingPlanService: plans, prices, coupons."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

from google.protobuf import json_format
from google.protobuf.message import Message

from nexus.finance.billing_service.v1 import plans_pb2 as pb
from nexus.finance.billing_service.v1.faults import (
    CouponCodeTaken,
    CouponNotFound,
    MeterNotFound,
    PlanChanged,
    PlanKeyTaken,
    PlanNotFound,
    PriceNotFound,
)
from nexus.type.v1.money_pb2 import Money
from services.chassis.clock import moment, timestamp
from services.chassis.context import RequestContext
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.finance.billing_service import rating
from services.finance.billing_service.stores.plans import PlanStore, Row


class BillingPlanService:
    def __init__(self, service: Service) -> None:
        self._store = PlanStore(service.database)
        self._pager = Pager(service.sealer)

    async def CreatePlan(self, request: pb.CreatePlanRequest, call: RequestContext) -> pb.CreatePlanResponse:
        row = await self._store.insert_plan(request.key, request.name, request.description, _json(request.features))
        if row is None:
            raise PlanKeyTaken(key=request.key)
        return pb.CreatePlanResponse(plan=_plan(row, ()))

    async def GetPlan(self, request: pb.GetPlanRequest, call: RequestContext) -> pb.GetPlanResponse:
        row = await self._store.plan(request.plan_id)
        return pb.GetPlanResponse(plan=(await self._with_prices([_found(row, request.plan_id)]))[0])

    async def ListPlans(self, request: pb.ListPlansRequest, call: RequestContext) -> pb.ListPlansResponse:
        size = self._pager.size(request)
        rows = await self._store.plans(self._pager.cursor(request, call), size + 1)
        more = self._pager.token(request, call, rows[size - 1]["key"]) if len(rows) > size else ""
        return pb.ListPlansResponse(plans=await self._with_prices(rows[:size]), next_page_token=more)

    async def UpdatePlan(self, request: pb.UpdatePlanRequest, call: RequestContext) -> pb.UpdatePlanResponse:
        row = await self._store.update_plan(
            request.plan_id, request.name, request.description, _json(request.features), request.etag
        )
        if row is None:
            _found(await self._store.plan(request.plan_id), request.plan_id)
            raise PlanChanged()
        return pb.UpdatePlanResponse(plan=(await self._with_prices([row]))[0])

    async def ArchivePlan(self, request: pb.ArchivePlanRequest, call: RequestContext) -> pb.ArchivePlanResponse:
        row = await self._store.archive_plan(request.plan_id)
        return pb.ArchivePlanResponse(plan=(await self._with_prices([_found(row, request.plan_id)]))[0])

    async def AddPrice(self, request: pb.AddPriceRequest, call: RequestContext) -> pb.AddPriceResponse:
        _found(await self._store.plan(request.plan_id), request.plan_id)
        for usage_price in request.usage_prices:
            rating.require_sound(usage_price)
            if await self._store.meter(usage_price.meter_key) is None:
                raise MeterNotFound(key=usage_price.meter_key)
        row = await self._store.insert_price(
            request.plan_id,
            request.fee.currency,
            request.fee.minor_units,
            pb.Interval.Name(request.interval).removeprefix("INTERVAL_"),
            request.interval_count or 1,
            request.trial_days,
            _json(request.usage_prices),
        )
        return pb.AddPriceResponse(price=_price(row))

    async def ArchivePrice(self, request: pb.ArchivePriceRequest, call: RequestContext) -> pb.ArchivePriceResponse:
        row = await self._store.archive_price(request.price_id)
        if row is None:
            raise PriceNotFound(price_id=request.price_id)
        return pb.ArchivePriceResponse(price=_price(row))

    async def CreateCoupon(self, request: pb.CreateCouponRequest, call: RequestContext) -> pb.CreateCouponResponse:
        row = await self._store.insert_coupon(
            request.code,
            request.name,
            request.basis_points,
            request.amount.currency,
            request.amount.minor_units,
            request.bills,
            moment(request.redeem_until_time) if request.HasField("redeem_until_time") else None,
            request.max_redemptions,
        )
        if row is None:
            raise CouponCodeTaken()
        return pb.CreateCouponResponse(coupon=_coupon(row))

    async def ListCoupons(self, request: pb.ListCouponsRequest, call: RequestContext) -> pb.ListCouponsResponse:
        size = self._pager.size(request)
        rows = await self._store.coupons(self._pager.cursor(request, call), size + 1)
        more = self._pager.token(request, call, rows[size - 1]["code"]) if len(rows) > size else ""
        return pb.ListCouponsResponse(coupons=map(_coupon, rows[:size]), next_page_token=more)

    async def ArchiveCoupon(self, request: pb.ArchiveCouponRequest, call: RequestContext) -> pb.ArchiveCouponResponse:
        row = await self._store.archive_coupon(request.coupon_id)
        if row is None:
            raise CouponNotFound()
        return pb.ArchiveCouponResponse(coupon=_coupon(row))

    async def _with_prices(self, plans: Sequence[Row]) -> list[pb.Plan]:
        prices: defaultdict[str, list[Row]] = defaultdict(list)
        for price in await self._store.prices_of([plan["plan_id"] for plan in plans]):
            prices[price["plan_id"]].append(price)
        return [_plan(plan, prices[plan["plan_id"]]) for plan in plans]


def _found(row: Row | None, plan_id: str) -> Row:
    if row is None:
        raise PlanNotFound(plan_id=plan_id)
    return row


def _json(messages: Iterable[Message]) -> str:
    return json.dumps([json_format.MessageToDict(message) for message in messages])


def _plan(row: Row, prices: Iterable[Row]) -> pb.Plan:
    return pb.Plan(
        plan_id=row["plan_id"],
        key=row["key"],
        name=row["name"],
        description=row["description"],
        features=[json_format.ParseDict(item, pb.Feature()) for item in json.loads(row["features"])],
        prices=map(_price, prices),
        archived=row["archived"],
        etag=row["etag"],
        create_time=timestamp(row["create_time"]),
    )


def _price(row: Row) -> pb.Price:
    return pb.Price(
        price_id=row["price_id"],
        plan_id=row["plan_id"],
        fee=Money(currency=row["currency"], minor_units=row["fee"]),
        interval=pb.Interval.Value(f"INTERVAL_{row['interval_unit']}"),
        interval_count=row["interval_count"],
        trial_days=row["trial_days"],
        usage_prices=[json_format.ParseDict(item, pb.UsagePrice()) for item in json.loads(row["usage_prices"])],
        archived=row["archived"],
    )


def _coupon(row: Row) -> pb.Coupon:
    coupon = pb.Coupon(
        coupon_id=row["coupon_id"],
        code=row["code"],
        name=row["name"],
        bills=row["bills"],
        redeem_until_time=timestamp(row["redeem_until"]) if row["redeem_until"] is not None else None,
        max_redemptions=row["max_redemptions"],
        redemptions=row["redemptions"],
        archived=row["archived"],
    )
    if row["basis_points"]:
        coupon.basis_points = row["basis_points"]
    else:
        coupon.amount.CopyFrom(Money(currency=row["currency"], minor_units=row["amount"]))
    return coupon
