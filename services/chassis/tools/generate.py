"""Compile `proto/` into `gen/`: stubs with types, the descriptor set, and one exception per error reason.

    python -m services.chassis.tools.generate            write gen/
    python -m services.chassis.tools.generate --check    fail if gen/ is not what proto/ says
    python -m services.chassis.tools.generate --image X  write only a buf image, for `buf lint` and `buf breaking`

Needs the `dev` packages. Reaches no registry: `buf/validate/validate.proto` comes from the protovalidate
package, `google/api` from googleapis-common-protos.
"""

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from google.rpc import code_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parents[3]
PROTO = ROOT / "proto"
GEN = ROOT / "gen"
IMAGE = Path("descriptors/nexus.binpb")
VALIDATE = "buf/validate/validate.proto"
# Field 8042 of a file in a buf image: { is_import: true }.
IS_IMPORT = bytes.fromhex("d2f603020801")
# The edge turns these into JSON inside `google.rpc.Status.details`, so its descriptor set must hold them.
ALWAYS_INCLUDED = ["google/rpc/error_details.proto", "google/rpc/status.proto"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--image", type=Path, help="write only the descriptor set, to this file")
    parser.add_argument("--proto", type=Path, default=PROTO, help="the contracts to compile")
    args = parser.parse_args()
    if args.image:
        with tempfile.TemporaryDirectory() as folder:
            compile_image(args.proto, args.image, Path(folder))
        mark_imports(args.image)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "gen"
        generate(args.proto, fresh)
        if args.check:
            stale = differences(fresh, GEN)
            for name in stale:
                print(f"gen/{name} is not what proto/ says", file=sys.stderr)
            if stale:
                print("Run `make gen` and commit what it writes.", file=sys.stderr)
            return 1 if stale else 0
        shutil.rmtree(GEN, ignore_errors=True)
        shutil.copytree(fresh, GEN)
    return 0


def generate(proto: Path, out: Path) -> None:
    """Write everything that `gen/` holds into the folder `out`."""
    (out / IMAGE).parent.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        compile_image(proto, out / IMAGE, Path(folder))
        plugins = Path(sys.executable).parent
        run_protoc(
            *includes(proto, Path(folder)),
            f"--plugin=protoc-gen-mypy={plugins}/protoc-gen-mypy",
            f"--plugin=protoc-gen-mypy_grpc={plugins}/protoc-gen-mypy_grpc",
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet:{out}",
            VALIDATE,
            *sources(proto),
        )
    for stub in out.rglob("*_pb2_grpc.py"):
        if "add_" not in stub.read_text():
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)
    files = descriptor_pb2.FileDescriptorSet.FromString((out / IMAGE).read_bytes())
    write_faults(files, out)


def compile_image(proto: Path, image: Path, scratch: Path) -> None:
    run_protoc(
        *includes(proto, scratch),
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={image}",
        *sources(proto),
        *ALWAYS_INCLUDED,
    )


def mark_imports(image: Path) -> None:
    """Tell buf which files of an image are not ours, as its own images do (ImageFileExtension.is_import)."""
    files = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    for file in files.file:
        if not file.package.startswith("nexus."):
            file.MergeFromString(IS_IMPORT)
    image.write_bytes(files.SerializeToString())


def includes(proto: Path, scratch: Path) -> list[str]:
    """The protoc arguments by which every import is found."""
    base = scratch / "base.binpb"
    if not base.exists():
        files = descriptor_pb2.FileDescriptorSet()
        for name in ("descriptor", "duration", "field_mask", "timestamp"):
            module = __import__(f"google.protobuf.{name}_pb2", fromlist=["DESCRIPTOR"])
            module.DESCRIPTOR.CopyToProto(files.file.add())
        files.file.append(descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary()))
        base.write_bytes(files.SerializeToString())
    common_protos = Path(annotations_pb2.__file__).parents[2]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    return [f"--descriptor_set_in={base}", f"-I{proto}", f"-I{common_protos}", f"-I{well_known}"]


def sources(proto: Path) -> list[str]:
    return sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))


def run_protoc(*arguments: str) -> None:
    status = protoc.main(["protoc", *arguments])
    if status != 0:
        sys.exit(status)


FAULTS_HEADER = '''"""One exception for each error reason of {package}. Generated by `make gen`; do not edit."""

from grpc import StatusCode
from services.chassis.errors import Fault

'''

FAULT = '''
class {name}(Fault):
    """{comment}"""

    domain = "{domain}"
    reason = "{reason}"
    code = StatusCode.{code}
    template = "{template}"
'''


def write_faults(files: descriptor_pb2.FileDescriptorSet, out: Path) -> None:
    """Write `faults.py` beside each contract whose package has an enum named `Reason`."""
    sys.path.insert(0, str(out))  # the options as they are now, not as they were last generated
    from nexus.options.v1 import policy_pb2

    for file in files.file:
        for index, enum in enumerate(file.enum_type):
            if enum.name != "Reason" or not file.package.startswith("nexus."):
                continue
            comments = {
                location.path[3]: " ".join(location.leading_comments.split())
                for location in file.source_code_info.location
                if list(location.path[:3]) == [5, index, 2] and len(location.path) == 4
            }
            parts = file.package.split(".")
            domain = "nexus" if parts[1] == "type" else parts[2].replace("_", "-")
            text = FAULTS_HEADER.format(package=file.package)
            for position, value in enumerate(enum.value):
                if value.number == 0:
                    continue
                options = descriptor_pb2.EnumValueOptions.FromString(value.options.SerializeToString())
                policy = options.Extensions[policy_pb2.reason]
                reason = value.name.removeprefix("REASON_")
                text += FAULT.format(
                    name="".join(word.capitalize() for word in reason.split("_")),
                    comment=comments.get(position, ""),
                    domain=domain,
                    reason=reason,
                    code=code_pb2.Code.Name(policy.code),
                    template=policy.message,
                )
            path = out.joinpath(*parts) / "faults.py"
            path.write_text(text)


def differences(fresh: Path, committed: Path) -> list[str]:
    """The files that differ between two trees, or are in only one of them."""

    def files(tree: Path) -> set[str]:
        return {
            str(path.relative_to(tree))
            for path in tree.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    ours, theirs = files(fresh), files(committed)
    changed = [name for name in ours & theirs if not filecmp.cmp(fresh / name, committed / name, shallow=False)]
    return sorted((ours ^ theirs) | set(changed))


if __name__ == "__main__":
    sys.exit(main())
