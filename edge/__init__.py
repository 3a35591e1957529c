"""The edge: its Envoy bootstrap, the OpenAPI document and the API reference, all built from the contracts."""
