"""Write the rendered files, or say which of them are stale."""

import sys
from pathlib import Path

from mesh.kubernetes.rendering import RENDERED, ROOT, files
from mesh.topology import topology


def main(root: Path = ROOT) -> int:
    wanted = {root / path: text for path, text in files(topology()).items()}
    found = {path: path.read_text() for path in [*(root / RENDERED).rglob("*.yaml"), *wanted] if path.exists()}
    stale = sorted(path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path))
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(root)} is stale")
        if stale:
            print("Run: make manifests")
        return int(bool(stale))
    for path in stale:
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
