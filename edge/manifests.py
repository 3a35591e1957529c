"""Render what the edge serves into `dist/`: its Envoy bootstrap and the OpenAPI document. `make manifests`."""

import json
import sys
from pathlib import Path

from edge import bootstrap, openapi
from services.chassis.config import load_settings
from services.chassis.spec import discover

OUT = Path("dist")


def main() -> int:
    settings = load_settings(service_ids=discover())
    OUT.mkdir(exist_ok=True)
    bootstrap.write(settings, OUT / "envoy.json")
    document = openapi.document(server_url=settings.public_url)
    (OUT / "openapi.json").write_text(json.dumps(document, indent=2))
    for name in ("envoy.json", "openapi.json"):
        print(OUT / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
