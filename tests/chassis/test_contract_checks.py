"""`make check` compares the contracts with what others may build on, and says what it would break for them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from services.chassis.tools import contracts
from services.chassis.tools.generate import ROOT

USER_AUTH = "nexus/identity/user_auth/v1/user_auth.proto"


class Repository:
    """A clone, and what it was cloned from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._origin = folder / "clone", folder / "origin"
        self.git("init", "--quiet", "--initial-branch=main", self._origin, inside=folder)
        self.git("clone", "--quiet", self._origin, self.folder, inside=folder)
        self.git("checkout", "--quiet", "-B", "main")

    def git(self, *arguments: str | Path, inside: Path | None = None) -> str:
        identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
        command = ["git", *identity, *map(str, arguments)]
        return subprocess.run(command, cwd=inside or self.folder, check=True, capture_output=True, text=True).stdout

    def change(self, text: str) -> None:
        path = self.folder / "proto" / "a.proto"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def commit(self, text: str) -> str:
        self.change(text)
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", text)
        return self.git("rev-parse", "HEAD").strip()

    def push(self) -> None:
        self.git("push", "--quiet", "--force", "--set-upstream", "origin", "HEAD:refs/heads/shared")

    def baseline(self) -> str:
        """The commit that `make check` would compare with."""
        return self.git("rev-parse", contracts._baseline()).strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    made = Repository(tmp_path)
    monkeypatch.setattr(contracts, "ROOT", made.folder)
    monkeypatch.setattr(contracts, "PROTO", made.folder / "proto")
    return made


def test_all_that_is_not_pushed_is_compared_with_what_is(repository: Repository) -> None:
    shared = repository.commit("one")
    repository.push()
    repository.commit("two")
    repository.commit("three")
    assert repository.baseline() == shared
    repository.change("four")
    assert repository.baseline() == shared


def test_what_is_pushed_is_compared_with_the_release_before(repository: Repository) -> None:
    released = repository.commit("one")
    repository.git("tag", "v1")
    repository.commit("two")
    repository.commit("three")
    repository.push()
    assert repository.baseline() == released
    repository.git("tag", "v2")
    assert repository.baseline() == released, "a release, with the one before"


def test_a_branch_is_compared_with_where_it_left_main(repository: Repository) -> None:
    left = repository.commit("one")
    repository.git("checkout", "--quiet", "-b", "mine")
    repository.commit("two")
    repository.commit("three")
    repository.git("checkout", "--quiet", "main")
    repository.commit("meanwhile")
    repository.git("checkout", "--quiet", "mine")
    assert repository.baseline() == left


def test_where_nothing_is_shared_each_commit_is_compared_with_the_one_before(repository: Repository) -> None:
    one, two = repository.commit("one"), repository.commit("two")
    assert repository.baseline() == one
    repository.change("three")
    assert repository.baseline() == two


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not in a git checkout: there is no contract to compare with")
@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("rpc GetUser(", "rpc FetchUser(", '"GetUser" on service "UserService" was deleted'),
        ("string email = 1", "bytes email = 1", 'changed type from "string" to "bytes"'),
        ("rpc GetUser(", "rpc getUser(", "should be PascalCase"),
        ("message GetUserRequest {", "message   GetUserRequest {", "-message   GetUserRequest {"),
    ],
    ids=["a method gone", "a field of another type", "a name in the wrong case", "a format of one's own"],
)
def test_what_would_break_others_or_is_not_as_it_should_be_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    old: str,
    new: str,
    complaint: str,
) -> None:
    proto = tmp_path / "proto"
    shutil.copytree(ROOT / "proto", proto)
    text = (proto / USER_AUTH).read_text()
    assert old in text
    (proto / USER_AUTH).write_text(text.replace(old, new))
    monkeypatch.setattr(contracts, "PROTO", proto)
    monkeypatch.setattr("sys.argv", ["contracts", "--against", "HEAD"])

    assert contracts.main() == 1
    assert complaint in capfd.readouterr().out
