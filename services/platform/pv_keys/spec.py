from services.chassis.spec import ServiceSpec

SERVICE = ServiceSpec(id="pv-keys", port=3081, calls=["key-service"])
