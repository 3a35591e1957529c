from services.chassis.spec import ServiceSpec

SERVICE = ServiceSpec(id="invoice-gen", port=3021, sends_mail=True)
