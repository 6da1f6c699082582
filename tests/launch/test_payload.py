"""Payloads: start arguments that are too large for a message are refused, or written to a file that the worker reads."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pickle
import stat
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rush_async import DecodeError, EncodeError, Processes, Rush, RushConfig, RushConfigError, RushWorker
from rush_async.launch.payload import Payload, remove_payloads
from rush_async.launch.pools import Pool
from rush_async.store.codec import decode, encode

LARGE = os.urandom(2_000)


@pytest.fixture
def config(directory: Path) -> RushConfig:
    """Settings that write payloads of more than a thousand bytes to a file."""
    return RushConfig(max_start_args_size=1_000, large_objects_path=directory / "large")


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


def large_payload(config: RushConfig, network_id: str = "net") -> tuple[Payload, Path]:
    payload = Payload.pack(LARGE, network_id, config, "the loop f")
    assert payload.path is not None
    return payload, Path(payload.path)


async def packed_in_both_ways(content: bytes, config: RushConfig) -> list[Payload]:
    in_thread = await Payload.pack_in_thread(content, "net", config, "the loop f")
    return [Payload.pack(content, "net", config, "the loop f"), in_thread]


# packing and unpacking


@pytest.mark.parametrize("n", [0, 1, 1_000])
async def test_a_small_payload_is_inline(config: RushConfig, directory: Path, n: int) -> None:
    for payload in await packed_in_both_ways(b"x" * n, config):
        assert payload == Payload("the loop f", n, b"x" * n)
        assert payload.unpack() == b"x" * n
    assert not (directory / "large").exists()


async def test_a_large_payload_is_written_to_a_file_and_sent_as_its_digest(config: RushConfig, directory: Path) -> None:
    for payload in await packed_in_both_ways(LARGE, config):
        assert (payload.inline, payload.size, payload.sha256) == (None, 2_000, hashlib.sha256(LARGE).hexdigest())
        assert payload.path is not None
        assert files_in(directory)
        assert payload.unpack() == LARGE
    assert len(files_in(directory)) == 2  # each has a name of its own


def test_a_payload_one_byte_above_the_limit_is_written_to_a_file(config: RushConfig) -> None:
    assert Payload.pack(b"x" * 1_001, "net", config, "the loop f").inline is None


@pytest.mark.parametrize("inline", [True, False])
def test_a_payload_is_restored_from_a_pickle_and_from_plain_values(config: RushConfig, inline: bool) -> None:
    payload = Payload.pack(b"small" if inline else LARGE, "net", config, "the loop f")
    assert pickle.loads(pickle.dumps(payload)) == payload
    assert Payload.of_record(decode(encode(payload.as_record(), "payload"))) == payload


@pytest.mark.parametrize(
    "change",
    [
        {"what": 7},
        {"size": "7"},
        {"inline": "text"},
        {"inline": b"both"},
        {"path": None},
        {"path": b"/bytes"},
        {"sha256": None},
        {"path": None, "sha256": None},
    ],
    ids=str,
)
def test_plain_values_that_are_not_a_payload_are_refused(change: dict[str, Any]) -> None:
    record = Payload("the loop f", 7, None, "/path", "digest").as_record()
    assert Payload.of_record(record).path == "/path"
    with pytest.raises(DecodeError, match="no payload of start arguments"):
        Payload.of_record(record | change)


def test_the_repr_of_a_payload_does_not_show_its_contents() -> None:
    assert "xxx" not in repr(Payload("the loop f", 9, b"x" * 9))


@pytest.mark.parametrize("umask", [0, 0o022])
def test_only_the_owner_can_read_directories_and_files(config: RushConfig, directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        _, path = large_payload(config)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (directory / "large", path.parent, path)]
    assert [oct(mode) for mode in modes] == ["0o700", "0o700", "0o600"]


async def test_a_relative_path_is_resolved_in_the_directory_of_the_manager(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    payload, path = large_payload(RushConfig(max_start_args_size=1_000, large_objects_path="large"))
    assert path.is_relative_to(directory / "large")
    monkeypatch.chdir("/")
    assert payload.unpack() == LARGE


IDS = ["a", "A", "a/b", "a-b", "..", "../../etc", "/", ".", "-", "ü" * 200, "x" * 200, "a b", "a\\b", "~", "*", "net", "net "]


def test_every_network_has_a_directory_of_its_own_whatever_its_name(config: RushConfig, directory: Path) -> None:
    paths = [large_payload(config, network_id)[1] for network_id in IDS]
    folders = {path.parent for path in paths}
    assert {folder.parent for folder in folders} == {directory / "large"}
    assert len({folder.name.lower() for folder in folders}) == len(IDS)
    assert all(folder.name.isascii() and len(folder.name) < 100 for folder in folders)
    assert folders == set((directory / "large").iterdir())


# errors


async def test_row_5_a_payload_that_is_too_large_names_both_sizes_and_the_remedies() -> None:
    config = RushConfig(max_start_args_size=1_000)
    with pytest.raises(EncodeError) as caught:
        Payload.pack(LARGE, "net", config, "the loop f")
    with pytest.raises(EncodeError) as caught_too:
        await Payload.pack_in_thread(LARGE, "net", config, "the loop f")
    assert str(caught_too.value) == str(caught.value)
    for words in ("the loop f: 2,000 bytes", "1,000 bytes", "in the loop itself", "large_objects_path", "max_start_args_size"):
        assert words in str(caught.value)


@pytest.mark.parametrize("what", ["file", "link"])
def test_the_error_names_the_directory_that_cannot_be_written(config: RushConfig, directory: Path, what: str) -> None:
    root = directory / "large"
    if what == "file":
        root.write_text("a file")
    else:
        root.symlink_to(directory / "gone")
    with pytest.raises(RushConfigError, match=f"cannot be written to the large_objects_path {root}: .*this user may write to"):
        Payload.pack(LARGE, "net", config, "the loop f")


def test_a_directory_without_a_parent_is_not_created(directory: Path) -> None:
    # It may be a share that is not mounted.
    config = RushConfig(max_start_args_size=1_000, large_objects_path=directory / "share" / "large")
    with pytest.raises(RushConfigError, match="No such file or directory"):
        Payload.pack(LARGE, "net", config, "the loop f")
    assert list(directory.iterdir()) == []


def test_a_file_that_cannot_be_finished_is_removed(
    config: RushConfig, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", no_space)
    with pytest.raises(RushConfigError, match="No space left on device"):
        Payload.pack(LARGE, "net", config, "the loop f")
    assert files_in(directory) == []


async def test_a_cancelled_packing_leaves_no_file(config: RushConfig, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    packing = asyncio.ensure_future(Payload.pack_in_thread(LARGE, "net", config, "the loop f"))
    write = os.rename

    def cancel_and_rename(*args: Any, **options: Any) -> None:
        cancelled = threading.Event()
        loop.call_soon_threadsafe(packing.cancel)
        loop.call_soon_threadsafe(loop.call_soon, cancelled.set)
        assert cancelled.wait(10)
        write(*args, **options)

    monkeypatch.setattr(os, "rename", cancel_and_rename)
    with pytest.raises(asyncio.CancelledError):
        await packing
    assert files_in(directory) == []
    assert (directory / "large").exists()  # the packing had begun


def test_the_error_of_a_missing_file_names_the_possible_causes(config: RushConfig) -> None:
    payload, path = large_payload(config)
    path.unlink()
    with pytest.raises(DecodeError) as caught:
        payload.unpack()
    for words in ("the loop f", str(path), "does not exist", "reset", "not shared with this machine"):
        assert words in str(caught.value)


def altered(path: Path) -> None:
    path.write_bytes(LARGE[:-1] + bytes([LARGE[-1] ^ 1]))


def cut(path: Path) -> None:
    path.write_bytes(LARGE[:-1])


def grown(path: Path) -> None:
    path.write_bytes(LARGE + b"x")


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [altered, cut, grown, a_directory, a_pipe])
def test_a_file_that_was_altered_is_refused(config: RushConfig, change: Callable[[Path], None]) -> None:
    payload, path = large_payload(config)
    change(path)
    with pytest.raises(DecodeError, match=r"the loop f: the file .* was altered after it had been written"):
        payload.unpack()


def test_a_symbolic_link_in_place_of_a_file_is_not_followed(config: RushConfig, directory: Path) -> None:
    payload, path = large_payload(config)
    path.rename(directory / "moved")
    path.symlink_to(directory / "moved")
    with pytest.raises(DecodeError, match="cannot be read on"):
        payload.unpack()


def test_a_symbolic_link_in_place_of_the_directory_of_a_network_is_not_followed(config: RushConfig, directory: Path) -> None:
    payload, path = large_payload(config)
    path.parent.rename(directory / "elsewhere")
    path.parent.symlink_to(directory / "elsewhere")
    with pytest.raises(RushConfigError, match="Not a directory"):
        Payload.pack(LARGE, "net", config, "the loop f")
    asyncio.run(remove_payloads("net", directory / "large"))
    assert (directory / "elsewhere" / path.name).exists()
    assert payload.unpack() == LARGE


# removing


async def test_remove_payloads_deletes_the_files_of_one_network_and_their_directory(
    config: RushConfig, directory: Path
) -> None:
    paths = [large_payload(config, network_id)[1] for network_id in [*IDS, *IDS]]
    (paths[0].parent / ".part").write_bytes(b"of a manager that was killed")
    for network_id in IDS[:2]:
        await remove_payloads(network_id, directory / "large")
    assert set(files_in(directory)) == {path for at, path in enumerate(paths) if at % len(IDS) > 1}
    assert not paths[0].parent.exists()


def test_remove_payloads_does_nothing_for_a_network_without_files(
    config: RushConfig, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(remove_payloads("net", directory / "large"))
    large_payload(config)
    asyncio.run(remove_payloads("another", directory / "large"))
    assert len(files_in(directory)) == 1
    assert caplog.records == []


def test_remove_payloads_keeps_files_behind_a_link_and_in_other_folders(
    config: RushConfig, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, path = large_payload(config)
    (directory / "kept").mkdir()
    (directory / "kept" / "file").write_text("kept")
    (path.parent / "link").symlink_to(directory / "kept")
    (path.parent / "other").symlink_to(directory / "kept" / "file")
    (path.parent / "folder").mkdir()
    (path.parent / "folder" / "file").write_text("not ours")
    with caplog.at_level(logging.WARNING):
        asyncio.run(remove_payloads("net", directory / "large"))
    assert set(files_in(directory)) == {directory / "kept" / "file", path.parent / "folder" / "file"}
    assert "cannot be removed: Directory not empty" in caplog.text


def test_a_write_during_a_removal_creates_its_directory_again(
    config: RushConfig, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename
    n_removed = 0

    def remove_and_rename(*args: Any, **options: Any) -> None:
        nonlocal n_removed
        if n_removed < 2:
            n_removed += 1
            asyncio.run(remove_payloads("net", directory / "large"))
        rename(*args, **options)

    monkeypatch.setattr(os, "rename", remove_and_rename)
    payload, _ = large_payload(config)
    assert n_removed == 2
    assert payload.unpack() == LARGE
    assert len(files_in(directory)) == 1


async def test_a_payload_that_no_worker_will_read_is_discarded(config: RushConfig, directory: Path) -> None:
    payload, _ = large_payload(config)
    await payload.discard()
    await payload.discard()
    await Payload.pack(b"small", "net", config, "the loop f").discard()
    assert files_in(directory) == []


# through processes and pools


def note_digest() -> Callable[..., Awaitable[None]]:
    """Returns a loop that is pickled by value: a process need not import this module."""

    async def note_digest(rush: RushWorker, data: bytes) -> None:
        await rush.push_finished_tasks([{"n": len(data)}], [{"digest": hashlib.sha256(data).hexdigest()}])

    return note_digest


async def test_row_5_processes_read_large_arguments_from_the_directory(rush: Rush, config: RushConfig, directory: Path) -> None:
    settings = replace(config, url=rush.config.url)
    async with Rush(rush.network_id, settings) as manager:
        await manager.start_workers(note_digest(), 2, on=Processes(), data=LARGE)
        await manager.join_workers(timeout=60)
        tasks = await manager.fetch_finished_tasks()
        assert tasks["n"].to_list() == [2_000, 2_000]
        assert set(tasks["digest"]) == {hashlib.sha256(LARGE).hexdigest()}
        (path,) = files_in(directory / "large")  # both have read the same
        await remove_payloads(rush.network_id, directory / "large")
        assert not path.exists()


async def test_row_5_a_pool_reads_large_arguments_from_the_directory(rush: Rush, config: RushConfig, directory: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        async with Rush(rush.network_id, replace(config, url=rush.config.url)) as manager:
            await manager.start_workers(note_digest(), 1, on=Pool(pool), data=LARGE)
            await manager.join_workers(timeout=60)
            assert (await manager.fetch_finished_tasks())["digest"].to_list() == [hashlib.sha256(LARGE).hexdigest()]
    assert len(files_in(directory)) == 1


async def test_row_5_a_reset_leaves_no_file_of_the_network(rush: Rush, config: RushConfig, directory: Path) -> None:
    settings = replace(config, url=rush.config.url)
    _, of_another = large_payload(config, "another")
    async with Rush(rush.network_id, settings) as manager:
        await manager.start_workers(note_digest(), 1, on=Processes(), data=LARGE)
        await manager.join_workers(timeout=60)
        assert len(files_in(directory)) == 2
        await manager.reset(workers=False)
        assert len(files_in(directory)) == 2  # running workers may start others
        await manager.reset()
        assert files_in(directory) == [of_another]


async def test_row_5_arguments_that_are_too_large_start_no_process(rush: Rush) -> None:
    settings = RushConfig(url=rush.config.url, max_start_args_size=1_000)
    async with Rush(rush.network_id, settings) as manager:
        with pytest.raises(EncodeError, match=r"the worker loop .*note_digest with its arguments: \d,\d{3} bytes.*1,000 bytes"):
            await manager.start_workers(note_digest(), 1, on=Processes(), data=LARGE)
        assert (await manager.worker_info())["state"].to_list() == ["failed"]


async def test_row_5_a_worker_whose_arguments_file_is_missing_fails_with_that_error(
    rush: Rush, config: RushConfig, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pack_and_lose(*args: Any) -> Payload:
        payload = Payload.pack(*args)
        await payload.discard()
        return payload

    monkeypatch.setattr(Payload, "pack_in_thread", pack_and_lose)
    async with Rush(rush.network_id, replace(config, url=rush.config.url)) as manager:
        await manager.start_workers(note_digest(), 1, on=Processes(), data=LARGE)
        (end,) = await manager.join_workers(timeout=60, check=False)
    assert end.state == "failed"
    assert end.failure is not None
    assert end.failure.type is not None
    assert "DecodeError" in end.failure.type
    assert "does not exist" in end.failure.message


async def test_a_start_that_fails_leaves_no_file(
    rush: Rush, config: RushConfig, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(directory / "no-python"))
    async with Rush(rush.network_id, replace(config, url=rush.config.url)) as manager:
        with pytest.raises(FileNotFoundError):
            await manager.start_workers(note_digest(), 1, on=Processes(), data=LARGE)
    assert files_in(directory) == []
