"""A shop for each test."""

import httpx
import pytest

from services.chassis.clients import Clients
from tests.commerce.shops import Shop
from tests.platforms import Platform, Tenant


@pytest.fixture
async def shop(platform: Platform, tenant: Tenant, http: httpx.AsyncClient, operator: Clients) -> Shop:
    return await Shop.open(platform, tenant, http, operator)


@pytest.fixture
async def other_shop(platform: Platform, other_tenant: Tenant, http: httpx.AsyncClient, operator: Clients) -> Shop:
    return await Shop.open(platform, other_tenant, http, operator)
