from services.chassis.spec import ServiceSpec

SERVICE = ServiceSpec(id="backend-api", port=3000, reflects_platform=True)
