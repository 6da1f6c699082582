"""The runtime directory of a server, and its data directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rush_async import Rush, RushConfig, RushConnectionError, ServerStartError
from rush_async.embedded import watchdog
from rush_async.embedded.directories import DataDirectory, RuntimeDirectory, has_ended, network_file_system
from rush_async.embedded.server import acquire
from rush_async.wire.blocking import BlockingConnection
from rush_async.wire.topology import Topology
from tests.embedded.users import OTHER, User, ask, directory_of, give_away, wait_until_loaded


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    too_long = base / ("x" * 100)
    too_long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(too_long))
    with pytest.raises(ServerStartError, match=r"would have \d+ bytes, at most 10. are possible: set TMPDIR or"):
        acquire(tmp_path / "data")
    assert list(too_long.iterdir()) == []
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    lease = acquire(tmp_path / "data")
    assert directory_of(lease.url).parent == base
    lease.release()
    assert list(base.iterdir()) == [too_long]


def test_the_path_of_the_data_dir_may_be_long(tmp_path: Path) -> None:
    lease = acquire(tmp_path / ("x" * 200))
    assert ask(lease.url, "PING") == b"+PONG\r\n"
    lease.release()


def test_a_runtime_directory_is_private_and_removed_with_its_files(base: Path) -> None:
    directory = RuntimeDirectory.create()
    assert directory.path.parent == base
    assert directory.path.stat().st_mode & 0o777 == 0o700
    for file in (directory.lease, directory.log, directory.pids, directory.socket, directory.data):
        file.touch()
    directory.remove()
    assert not directory.path.exists()
    directory.remove()


def test_a_runtime_directory_with_another_file_is_not_removed(base: Path) -> None:
    directory = RuntimeDirectory.create()
    (directory.path / "results.csv").write_text("precious")
    directory.remove()
    assert (directory.path / "results.csv").read_text() == "precious"


def test_a_server_has_ended_for_good_when_its_directory_is_gone(base: Path) -> None:
    directory = RuntimeDirectory.create()
    url = f"unix://{directory.socket}"
    assert not has_ended(url)
    directory.remove()
    assert has_ended(url)
    for other in ("unix:///run/redis/socket", f"unix://{directory.path}/redis.sock", "redis://host:6379"):
        assert not has_ended(other)


@pytest.fixture
def data(directory: Path) -> DataDirectory:
    return DataDirectory.prepare(directory / "data")


@pytest.mark.parametrize(
    "kind", ["empty", "other files", "no data", "other data", "no text", "open to others", "symbolic link", "file", "missing"]
)
def test_only_a_private_directory_made_for_the_data_is_recognised(directory: Path, data: DataDirectory, kind: str) -> None:
    path = directory / "rush-project"
    if kind not in ("symbolic link", "file", "missing"):
        path.mkdir(mode=0o755 if kind == "open to others" else 0o700)
    match kind:
        case "empty":
            pass
        case "no data":
            (path / "lease").touch()
        case "other data":
            (path / "data").write_text("1 2")
        case "no text":
            (path / "data").write_bytes(b"\xff")
        case "symbolic link":
            (directory / "elsewhere").mkdir(mode=0o700)
            (directory / "elsewhere" / "data").write_text(data.identity)
            path.symlink_to(directory / "elsewhere")
        case "file":
            path.touch(mode=0o700)
        case "missing":
            pass
        case _:
            (path / "data").write_text(data.identity)
            if kind == "other files":
                (path / "results.csv").touch()
    assert not RuntimeDirectory(path).belongs_to(data)


def test_a_directory_of_another_user_is_not_recognised(
    base: Path, data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RuntimeDirectory.create(data)
    assert directory.belongs_to(data)
    monkeypatch.setattr(os, "geteuid", lambda: directory.path.stat().st_uid + 1)
    assert not directory.belongs_to(data)


def test_a_copy_of_a_data_directory_has_a_server_of_its_own(tmp_path: Path) -> None:
    user = User(tmp_path / "results")
    ask(user.url, "SET", "k", "original")
    shutil.copytree(tmp_path / "results", tmp_path / "copy")
    lease = acquire(tmp_path / "copy")
    assert lease.url != user.url
    wait_until_loaded(lease.url)
    ask(lease.url, "SET", "k", "copy")
    assert b"original" in ask(user.url, "GET", "k")
    lease.release()
    assert directory_of(user.url).exists()
    user.close()


def test_data_of_an_older_program_is_made_private_and_no_link_is_followed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    acquire(data).release()
    files = list(data.rglob("*"))
    for file in files:
        file.chmod(0o755 if file.is_dir() else 0o644)
    acquire(data).release()
    assert [file for file in files if file.stat().st_mode & 0o077] == []
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "appendonlydir").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ServerStartError, match="appendonlydir"):
        acquire(linked)


def test_a_data_dir_that_names_a_directory_of_another_program_does_not_delete_it(tmp_path: Path) -> None:
    project = tmp_path / "rush-project"
    project.mkdir(mode=0o700)
    (project / "results.csv").write_text("precious")
    data = tmp_path / "data"
    data.mkdir()
    (data / "rush.runtime").write_text(str(project))
    acquire(data).release()
    assert (project / "results.csv").read_text() == "precious"


def test_the_directory_of_a_server_that_ended_with_its_machine_is_removed(directory: Path, base: Path) -> None:
    data = DataDirectory.prepare(directory / "data")
    stale = RuntimeDirectory.create(data)
    stale.lease.touch()
    data.record(stale)
    lease = acquire(data.path)
    assert not stale.path.exists()
    lease.release()


@pytest.mark.parametrize("name", ["rush.runtime", "rush.log", "rush.lock"])
def test_a_symbolic_link_in_the_data_dir_is_not_written_through(tmp_path: Path, base: Path, name: str) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    data = tmp_path / "data"
    data.mkdir()
    (data / name).symlink_to(target)
    with pytest.raises(ServerStartError, match="symbolic link"):
        acquire(data)
    assert target.read_text() == "precious"
    assert list(base.iterdir()) == []


def test_a_data_directory_is_in_use_while_a_server_writes_there(tmp_path: Path) -> None:
    data = DataDirectory.prepare(tmp_path)
    assert not data.is_in_use()
    user = User(tmp_path)
    assert data.is_in_use()
    runtime = data.runtime_directory()
    assert runtime is not None
    assert (runtime.path, runtime.server_pid()) == (directory_of(user.url), user.pid)
    user.release()
    assert not data.is_in_use()
    user.close()


def test_a_data_dir_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rush.lock").mkdir()  # unlike a mode, this also stops root
    with pytest.raises(ServerStartError, match="It must be writable and on a local file system"):
        acquire(tmp_path)


def test_a_data_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerStartError, match="cannot be used"):
        acquire(tmp_path / "file")


def test_network_file_systems_are_recognised(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /shared rw,noatime shared:1 - %s server:/export rw\n"
    mounts.write_text("22 1 1:2 / / rw - ext4 /dev/x rw\n" + line % "nfs4")
    assert network_file_system(device, mounts) == "nfs4"
    mounts.write_text(line % "ext4")
    assert network_file_system(device, mounts) is None


# other users, in directories where everyone may write


@pytest.fixture
def shared(directory: Path) -> Path:
    """A directory as /tmp is."""
    shared = directory / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    return shared


@pytest.mark.parametrize("planted", ["results", "results/rush.log", "results/appendonlydir", "link", "project"])
def test_a_data_dir_that_another_user_made_first_is_refused(
    shared: Path, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = shared / planted.partition("/")[0], shared / planted
    if planted == "link":
        (shared.parent / "elsewhere").mkdir()
        path.symlink_to(shared.parent / "elsewhere")
    else:
        path.mkdir(parents=True)
        data.chmod(0o777)
    give_away(path, monkeypatch)
    data = data / "run" if planted == "project" else data
    with pytest.raises(ServerStartError, match=rf"user \d+ made '{path}', where everyone may, and could exchange the data"):
        acquire(data)
    assert not data.exists() or {file.name for file in data.iterdir()} <= {"rush.log", "appendonlydir"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_data_dir_of_another_user_in_a_place_that_is_not_for_everyone_is_used(directory: Path) -> None:
    (directory / "data").mkdir()  # as where root of a container works in a directory of the host
    os.chown(directory / "data", OTHER, -1)
    acquire(directory / "data").release()


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_removing_a_runtime_directory_that_was_exchanged_removes_nothing_else(
    base: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RuntimeDirectory.create()
    directory.path.rename(base / "ours")
    theirs = base / "theirs" if kind == "link" else directory.path
    theirs.mkdir()
    (theirs / "log").touch()
    if kind == "link":
        directory.path.symlink_to(theirs)
    else:
        give_away(theirs, monkeypatch)
    directory.remove()
    watchdog.remove(str(directory.path))
    assert (theirs / "log").exists()


async def test_a_client_refuses_the_server_of_another_user_at_its_socket(
    rush_server: RushConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    config = replace(rush_server, connect_timeout=1)
    with pytest.raises(RushConnectionError, match=f"user {own} listens there, not the embedded server of this user"):
        await Rush("net", config)
    blocking = BlockingConnection(config, Topology(config))
    with pytest.raises(RushConnectionError, match=f"user {own} listens there"):
        blocking.ask("PING")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_another_user_reaches_neither_the_server_nor_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as shared:  # the directories of pytest are closed to others
        os.chmod(shared, 0o1777)
        monkeypatch.setattr(tempfile, "tempdir", shared)
        lease = acquire(Path(shared) / "data")
        if (pid := os.fork()) == 0:
            os.setuid(OTHER)
            os._exit(
                sum(
                    can(act)
                    for act in (
                        lambda: ask(lease.url, "PING"),
                        lambda: os.listdir(directory_of(lease.url)),
                        lambda: os.listdir(Path(shared) / "data"),
                    )
                )
            )
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        lease.release()


def can(act: Callable[[], Any]) -> bool:
    try:
        act()
    except PermissionError:
        return False
    return True
