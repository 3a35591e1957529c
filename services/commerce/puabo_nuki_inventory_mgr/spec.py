from services.chassis.spec import ServiceSpec

SERVICE = ServiceSpec(id="puabo-nuki-inventory-mgr", port=3041)
