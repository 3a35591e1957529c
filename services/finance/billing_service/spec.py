from services.chassis.spec import ServiceSpec

SERVICE = ServiceSpec(id="billing-service", port=3020)
