"""The servicers of the catalogue, one for each gRPC service of its contract."""

from services.commerce.puabo_nuki_product_catalog.servicers.imports import ImportService
from services.commerce.puabo_nuki_product_catalog.servicers.prices import PriceService
from services.commerce.puabo_nuki_product_catalog.servicers.products import ProductService
from services.commerce.puabo_nuki_product_catalog.servicers.storefront import StorefrontService

__all__ = ["ImportService", "PriceService", "ProductService", "StorefrontService"]
