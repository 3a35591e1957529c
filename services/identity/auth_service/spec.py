from services.chassis.spec import ServiceSpec

SERVICE = ServiceSpec(id="auth-service", port=3001, calls=["user-auth", "session-mgr", "token-mgr"])
