from services.chassis.spec import ServiceSpec

SERVICE = ServiceSpec(id="puabo-nuki-product-catalog", port=3040)
