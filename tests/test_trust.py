"""A password is planted wherever it may be given, and searched for in logs, reprs, tracebacks, command lines, files and keys.
Pickles that are planted in the database are never loaded."""

from __future__ import annotations

import logging
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psutil
import pytest
import redis

from rush_async import Processes, Rush, RushClient, RushConfig, RushError, RushWorker, rsh, rush_plan
from rush_async.launch.job import Job, digest_of
from rush_async.launch.packed_loop import PackedLoop
from rush_async.launch.payload import Payload
from rush_async.launch.pools import PackedJob
from rush_async.store.codec import encode
from rush_async.testing import wait_until
from tests.client.test_session import free_port, server_at

PASSWORD = "Tr0ub4dor&3/with:odd@%20 signs"
QUOTED = quote(PASSWORD, safe="")
FORMS = (PASSWORD, QUOTED, quote_plus(PASSWORD), QUOTED.replace("%20", "+"), "Tr0ub4dor")
"""What is searched for: the last is a part of all others."""


def shows(text: str | bytes) -> bool:
    """Whether a text has the password in any form."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return any(form in text for form in FORMS)


class Spy(logging.Handler):
    """Keeps what is logged, as a formatter writes it, with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "careless":  # what programs log themselves is theirs
            self.lines.append(f"{logging.Formatter().format(record)} {record.args!r}")


@pytest.fixture
def log() -> Iterator[Spy]:
    root, spy = logging.getLogger(), Spy()
    level, own = root.level, logging.getLogger("rush_async").level
    root.addHandler(spy)
    root.setLevel(logging.DEBUG)
    logging.getLogger("rush_async").setLevel(logging.DEBUG)
    yield spy
    root.removeHandler(spy)
    root.setLevel(level)
    logging.getLogger("rush_async").setLevel(own)


@pytest.fixture
def server(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The socket of a server with the password. What is left of the environment has none."""
    for name in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR", "RUSH_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    (directory / "server").mkdir()
    with server_at(directory / "server") as socket:
        with redis.Redis(unix_socket_path=socket) as client:
            client.config_set("requirepass", PASSWORD)  # pyright: ignore[reportUnknownMemberType]
        yield Path(socket)


async def is_careless(rush: RushWorker, url: str) -> None:
    """Does what a careless loop does with a URL: it logs it, and raises an error that has it."""
    logging.getLogger("careless").info("connecting to %s", url)
    async with rush.task({"x": 1}) as task:
        task.ys = {"y": 1}
    async with rush.task({"x": 2}):
        raise ValueError(f"no route to {url}")


async def waits(rush: RushWorker) -> None:
    """Waits until it is stopped."""
    await rush.pop_task(None)


_READS: dict[bytes, Callable[[Any, bytes], Any]] = {
    b"string": lambda raw, key: [raw.get(key)],
    b"hash": lambda raw, key: [part for pair in raw.hgetall(key).items() for part in pair],
    b"list": lambda raw, key: raw.lrange(key, 0, -1),
    b"set": lambda raw, key: raw.smembers(key),
    b"zset": lambda raw, key: raw.zrange(key, 0, -1),
    b"stream": lambda raw, key: [part for _, entry in raw.xrange(key) for pair in entry.items() for part in pair],
}


def everything_in(raw: Any) -> list[bytes]:
    """Every key, field and value of a database, as it is stored."""
    return [part for key in raw.keys("*") for part in (key, *_READS[raw.type(key)](raw, key))]


def of_children(file: str) -> list[bytes]:
    """A file of /proc of each process that this one has started."""
    found: list[bytes] = []
    for child in psutil.Process().children(recursive=True):
        with suppress(OSError):
            found.append(Path(f"/proc/{child.pid}/{file}").read_bytes())
    return found


def files_that_show(directory: Path) -> list[Path]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) >= 2
    return [path for path in files if shows(path.read_bytes())]


def display_of(rush: Rush) -> str:
    return rush._repr_html_()  # pyright: ignore[reportPrivateUsage]


def of_everything(error: BaseException) -> list[str]:
    """What an exception shows: its repr, and its traceback with all causes."""
    return [repr(error), str(error), "".join(traceback.format_exception(error))]


async def test_a_password_comes_out_nowhere(
    server: Path, directory: Path, log: Spy, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, capfd: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    url, shown = f"unix://:{QUOTED}@{server}", list[str]()
    config = RushConfig(url, heartbeat_period=0.2)
    async with Rush("net", config) as rush:
        async with RushWorker("net", config) as worker, RushClient("net", config) as client:
            shown += [repr(each) for each in (rush, worker, client, config, rush.config, *vars(rush).values())]
        shown += [str(rush), display_of(rush), rush.worker_command(waits), rush.worker_command(waits, allow_pickle=True)]
        await (await rsh("net", f"unix://{server}?p%61ssword={quote_plus(PASSWORD)}")).aclose()
        options: dict[str, Any] = {"args": {"url": url}, "log_levels": {"": "DEBUG"}, "log_dir": directory / "log"}
        with ThreadPoolExecutor(1) as pool:
            await rush.start_workers(is_careless, 1, on=pool, **options)
            await rush.start_workers(is_careless, 2, on=Processes(1), **options)
            await rush.start_workers(waits, 1, on=Processes(1))
            await rush.wait_until(lambda counts: counts.failed == 3, timeout=20)
            children = [*of_children("cmdline"), *of_children("environ")]
            with suppress(RushError):
                await rush.stop_workers(timeout=5)
        frames = [await rush.read_log(), await rush.fetch_failed_tasks(), await rush.worker_info()]
        shown += [str(frame.rows()) for frame in frames]
        with redis.Redis(unix_socket_path=str(server), password=PASSWORD) as raw:
            stored = everything_in(raw)
        assert "connecting to unix://:***@" in str(shown)
        assert "no route to unix://:***@" in str(shown)
        assert len(stored) > 30
        assert len(children) >= 4
    shown += [*log.lines, *(str(warning.message) for warning in recwarn), *capfd.readouterr()]
    assert [text for text in (*shown, *stored, *children) if shows(text)] == []
    assert files_that_show(directory) == []


MISTAKES: dict[str, Callable[[str, Path], Any]] = {
    "wrong password": lambda _, socket: Rush("net", f"unix://:{QUOTED}%00@{socket}"),
    "wrong user": lambda _, socket: Rush("net", f"unix://ann:{QUOTED}@{socket}"),
    "no server": lambda url, _: Rush("net", f"redis://:{QUOTED}@127.0.0.1:{free_port()}"),
    "no socket": lambda url, socket: RushWorker("net", f"{url}.not"),
    "no TLS": lambda url, _: Rush("net", RushConfig(f"rediss://:{QUOTED}@127.0.0.1:{free_port()}?ssl_password={QUOTED}")),
    "no db": lambda url, _: Rush("net", f"{url}?db=first"),
    "unquoted": lambda _, socket: Rush("net", f"unix://:{PASSWORD}@{socket}"),
    "unquoted host": lambda url, _: Rush("net", f"redis://:{PASSWORD}@host"),
    "no scheme": lambda url, _: Rush("net", PASSWORD),
    "unknown scheme": lambda url, _: Rush("net", f"http://:{QUOTED}@host"),
    "unknown option": lambda url, _: Rush("net", f"{url}?secret=1"),
    "bad port": lambda url, _: Rush("net", f"redis://:{QUOTED}@host:port"),
    "as an id": lambda url, _: Rush(url),
    "as the id of a worker": lambda url, _: RushWorker("net", worker_id=url),
    "as a data_dir": lambda url, _: Rush("net", data_dir=url),
    "beside a data_dir": lambda url, _: Rush("net", url, data_dir="results"),
    "both": lambda url, _: RushConfig(url, data_dir="results"),
    "as a plan": lambda url, _: rush_plan(config=url, n_workers=0),
    "as a certificate": lambda url, _: Rush("net", RushConfig(f"rediss://:{QUOTED}@localhost", tls_ca_file="none")),
    "in bytes": lambda url, _: RushConfig(url.encode()),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_no_error_shows_a_password(mistake: str, server: Path, log: Spy) -> None:
    with pytest.raises((RushError, TypeError)) as caught:
        async with MISTAKES[mistake](f"unix://:{QUOTED}@{server}", server):
            pass
    assert [text for text in (*of_everything(caught.value), *log.lines) if shows(text)] == []


def test_a_job_shows_no_password_in_the_log_of_a_pool() -> None:
    job = Job("net", RushConfig(f"redis://:{QUOTED}@host"), ["ann"], PackedLoop.without_arguments("m:f"), None)
    packed = PackedJob(job.to_pickle())
    assert shows(packed)
    assert not shows(repr(job) + repr(packed))
    assert Job.of_pickle(pickle.loads(pickle.dumps(packed))) == job


# pickles


class Bomb:
    """A value whose pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def plant(raw: Any, pickled: bytes) -> int:
    """Puts a pickle in the place of each value of a database, and beside it; returns how many keys it changed."""
    keys = [key for key in raw.keys("*") if not key.endswith(b":meta")]
    for key in keys:
        match raw.type(key):
            case b"hash":
                for field in (*raw.hkeys(key), "planted"):
                    raw.hset(key, field, pickled)
            case b"list":
                raw.rpush(key, pickled)
            case b"stream":
                (_, entry), *_ = raw.xrange(key)
                raw.xadd(key, dict.fromkeys(entry, pickled))
            case b"zset":
                raw.zadd(key, {pickled: 1})
            case b"set":
                raw.sadd(key, pickled)
            case _:
                raw.set(key, pickled)
    return len(keys)


async def test_a_planted_pickle_is_never_loaded(rush: Rush, rush_worker: RushWorker, raw: Any, directory: Path) -> None:
    bomb = pickle.dumps(Bomb(directory / "loaded"))
    await rush.push_tasks([{"x": 1}] * 3)
    running = await rush_worker.pop_task(0)
    assert running is not None
    await running.report({"loss": 1.0})
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    await rush_worker.fail_tasks(await rush_worker.push_running_tasks([{"x": 2}]))
    await rush.set_attrs({"a": 1})
    rush.worker_command(waits, allow_pickle=True)
    starts = f"rush:{{{rush.network_id}}}:starts"
    await wait_until(lambda: raw.exists(starts))
    payload = Payload("a bomb", len(bomb), bomb).as_record()
    settings: dict[str, Any] = {"n_workers": 1, "log_levels": None, "settings": {}, "schema": None}
    start = encode({"pickle": payload, "python": list(sys.version_info[:2])} | settings, "start")
    assert plant(raw, bomb) >= 7
    raw.hset(starts, digest_of(start), start)
    raw.hset(starts, "0" * 32, start)
    async with Rush(rush.network_id, replace(rush.config, response_timeout=10.5), exist_ok=True) as other:
        calls: list[Callable[[], Any]] = [
            *(other.fetch_finished_tasks, other.fetch_failed_tasks, other.fetch_queued_tasks, other.fetch_running_tasks),
            *(other.worker_info, other.read_log, other.attrs, other.counts, other.stop_rules, other.fetch_reports),
            lambda: other.get_tasks(["planted"]),
            lambda: rush_worker.pop_task(0),
        ]
        for call in calls:
            with suppress(RushError):
                await call()
        # the worker does not allow it, or its command names another start
        for start_id, allow_pickle, why in ((digest_of(start), False, "contains a pickle"), ("0" * 32, True, "was altered")):
            found = raw.hget(starts, start_id)
            with pytest.raises(RushError, match=why):
                Job.of_start(found, start_id, rush.network_id, rush.config, allow_pickle=allow_pickle)
    assert not (directory / "loaded").exists()
    pickle.loads(bomb)
    assert (directory / "loaded").exists()
