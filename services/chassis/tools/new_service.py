"""Write a service that works: contract, folder, migration and a passing test.

    python -m services.chassis.tools.new_service finance tip-jar

What it writes keeps notes, so that every layer has something to show. Replace the notes with what the service is
for; the shape stays.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from string import Template

from services.chassis.spec import discover
from services.chassis.tools.generate import ROOT

TEMPLATES = Path(__file__).parent / "new_service"
FIRST_FREE_PORT = 3100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", help='"finance": an existing domain, or a new one')
    parser.add_argument("name", help='"tip-jar": the service id')
    args = parser.parse_args()
    for word in (args.domain, args.name):
        if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", word):
            parser.error(
                f"{word!r}: lower-case words joined by hyphens, please: make new-service DOMAIN=finance NAME=tip-jar"
            )
    written = write(args.domain.replace("-", "_"), args.name.replace("_", "-"))
    subprocess.run([sys.executable, "-m", "services.chassis.tools.generate"], check=True, cwd=ROOT)
    for path in written:
        print(path.relative_to(ROOT))
    print(f'\nTry it: make test T="-k {args.name.replace("-", "_")}"')
    return 0


def write(domain: str, service_id: str) -> list[Path]:
    """Write the files; returns their paths. Exits when the service exists."""
    specs = discover()
    if service_id in specs:
        sys.exit(f"{service_id} exists: {specs[service_id].folder.relative_to(ROOT)}")
    package = service_id.replace("-", "_")
    values = {
        "domain": domain,
        "id": service_id,
        "package": package,
        "service": "".join(word.capitalize() for word in package.split("_")) + "Service",
        "port": str(
            max([FIRST_FREE_PORT, *(spec.port + 1 for spec in specs.values() if spec.port >= FIRST_FREE_PORT)])
        ),
    }
    places = {
        "contract.proto": f"proto/nexus/{domain}/{package}/v1/{package}.proto",
        "reasons.proto": f"proto/nexus/{domain}/{package}/v1/reasons.proto",
        "spec.py": f"services/{domain}/{package}/spec.py",
        "servicer.py": f"services/{domain}/{package}/servicer.py",
        "notes.sql": f"services/{domain}/{package}/migrations/0001_notes.sql",
        "test.py": f"tests/{domain}/test_{package}.py",
    }
    written = []
    for template, place in places.items():
        path = ROOT / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template((TEMPLATES / f"{template}.txt").read_text()).substitute(values))
        written.append(path)
    return written


if __name__ == "__main__":
    sys.exit(main())
