"""Check the contracts with buf: lint, format, and nothing broken for those who use them. Reaches no registry.

    python -m services.chassis.tools.contracts [--against REV]

Without `--against`, contracts are compared with what others may build on already: the newest commit that this branch
has in common with its upstream, or with main where there is none. What is published itself, as in CI, is compared with
the release before, or where nothing was released with the commit before.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from services.chassis.tools.generate import GEN, IMAGE, PROTO, ROOT, compile_image, mark_imports

BUF = Path(sys.executable).parent / "buf"
COMMITTED = (GEN / IMAGE).relative_to(ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="the git revision whose contracts must not be broken")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "now.binpb"
        compile_image(PROTO, image, folder)
        before = _image_at(args.against or _baseline(), folder / "before.binpb")
        mark_imports(image)
        failed = _buf("lint", str(image)) or _buf("format", "--diff", "--exit-code", str(PROTO))
        if before is not None:
            failed |= _buf("breaking", str(image), "--against", str(before))
        return int(failed)


def _buf(*arguments: str) -> bool:
    """Whether it failed. Its findings go to the terminal."""
    config = ["--config", str(ROOT / "buf.yaml")] if arguments[0] != "format" else []
    return subprocess.run([str(BUF), *arguments, *config], cwd=ROOT).returncode != 0


def _baseline() -> str:
    """A revision; see above."""
    changed = _git("diff", "--quiet", "HEAD", "--", str(PROTO)).returncode != 0
    for shared in ("@{upstream}", "origin/HEAD", "main"):
        base = _said("merge-base", "HEAD", shared)
        if base is not None and (changed or base != _said("rev-parse", "HEAD")):
            return base
    return _said("describe", "--tags", "--abbrev=0", "HEAD^") or ("HEAD" if changed else "HEAD^")


def _said(*arguments: str) -> str | None:
    answer = _git(*arguments)
    return answer.stdout.decode().strip() if answer.returncode == 0 else None


def _image_at(revision: str, path: Path) -> Path | None:
    """The committed image of a revision, or None where there is none: the first commit, a shallow clone."""
    found = _git("show", f"{revision}:{COMMITTED}")
    if found.returncode != 0:
        print(f"No contracts at {revision} to compare with.")
        return None
    path.write_bytes(found.stdout)
    mark_imports(path)
    return path


def _git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
