"""Opening and closing a client: where the server is found, what is said when it is not, and whose the client is."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import subprocess
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from rush_async import (
    Counts,
    NetworkStateError,
    Rush,
    RushClient,
    RushConfig,
    RushConfigError,
    RushConnectionError,
    RushWorker,
    ServerStartError,
    TaskReported,
    rsh,
)
from rush_async.client.export.exporting import Exporting
from rush_async.client.shared_state import SharedState
from rush_async.client.stopping import Stopping
from rush_async.embedded.server import find_server
from rush_async.testing import wait_until
from tests.proxy import Proxy

XS = {"x1": 1.0, "x2": 2.0}
PASSWORD = "s3cret/pass:word@%"
QUOTED = "s3cret%2Fpass%3Aword%40%25"


@contextmanager
def server_at(directory: Path, *options: str) -> Generator[str]:
    """A server of our own, with options that the shared one must not have; its socket's path."""
    socket = directory / "own.sock"
    command = [find_server(), "--port", "0", "--unixsocket", socket, "--dir", directory, "--save", "", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            log: list[str] = []
            for line in server.stdout:
                log.append(line)
                if "ready to accept connections" in line.lower():
                    break
            else:
                pytest.fail("The server did not start:\n" + "".join(log))
            yield str(socket)
        finally:
            server.terminate()


@asynccontextmanager
async def stub(*answers: bytes) -> AsyncGenerator[int]:
    """What answers each command that comes with the next of these bytes, then with nothing; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = list(answers)
        while await reader.read(65536):
            if waiting:
                writer.write(waiting.pop(0))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def hello(name: bytes, version: bytes) -> bytes:
    words = [b"server", name, b"version", version, b"proto", 2, b"id", 3, b"mode", b"standalone", b"role", b"master"]
    words += [b"modules"]
    parts = [b":%d\r\n" % word if isinstance(word, int) else b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"*14\r\n" + b"".join(parts) + b"*0\r\n"


def free_port() -> int:
    """A port without a listener."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_another_loop(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a coroutine function gives in an event loop of its own, in another thread."""
    results: list[Any] = []

    def run() -> None:
        async def main() -> Any:
            return await call()

        try:
            results.append(asyncio.run(main()))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


# rows 1 and 2: where the server is


async def test_row_1_a_manager_without_config_or_id_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUSH_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("RUSH_DATA_DIR", raising=False)
    async with Rush() as rush, Rush() as other:
        assert rush.network_id != other.network_id
        assert rush.config.url is not None
        assert rush.config.url.startswith("unix://")
        (key,) = await rush.push_tasks([XS])
        # One server a process: every client that names the network is in it.
        async with RushWorker(rush.network_id) as worker:
            task = await worker.pop_task(0)
            assert task is not None
            assert task.key == key
            await worker.finish_tasks(key, [{"y": 1}])
        assert await rush.counts() == Counts(finished=1)
        assert await other.counts() == Counts()
        await rush.reset()


async def test_row_1_a_port_without_a_server_is_an_error_with_redacted_url_and_cause() -> None:
    port = free_port()
    begin = time.monotonic()
    with pytest.raises(RushConnectionError) as caught:
        await Rush("net", f"redis://user:{QUOTED}@127.0.0.1:{port}")
    assert time.monotonic() - begin < 3
    sentence = str(caught.value)
    assert f"redis://user:***@127.0.0.1:{port}" in sentence
    assert "Error 111 connecting" in sentence
    assert "Start a Redis or Valkey server" in sentence
    assert caught.value.__cause__ is not None
    for link in (caught.value, caught.value.__cause__):
        assert PASSWORD not in str(link)
        assert QUOTED not in str(link)


async def test_row_1_a_socket_that_is_not_there_is_an_error(directory: Path) -> None:
    with pytest.raises(RushConnectionError, match=r"nothing\.sock"):
        await Rush("net", f"unix://{directory}/nothing.sock")


async def test_row_1_a_host_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(RushConnectionError, match="no-such-host"):
        await Rush("net", RushConfig(url="redis://no-such-host.invalid:6379", connect_timeout=2))


@pytest.mark.parametrize("timeout", [0.2, 0.6])
async def test_row_1_a_server_that_does_not_answer_is_an_error_within_connect_timeout(timeout: float) -> None:
    async with stub() as port:
        begin = time.monotonic()
        with pytest.raises(
            RushConnectionError, match=rf"no answer from redis://:\*\*\*@127\.0\.0\.1:{port} within {timeout:g} s"
        ):
            await Rush("net", RushConfig(url=f"redis://:{QUOTED}@127.0.0.1:{port}", connect_timeout=timeout))
        assert timeout <= time.monotonic() - begin + 0.01 < timeout + 2


async def test_row_1_a_server_that_hangs_after_its_greeting_is_an_error_within_connect_timeout() -> None:
    async with stub(hello(b"redis", b"7.4.0")) as port:
        begin = time.monotonic()
        with pytest.raises(RushConnectionError, match="no answer"):
            await Rush("net", RushConfig(url=f"redis://127.0.0.1:{port}", connect_timeout=0.3))
        assert time.monotonic() - begin < 2.5


async def test_row_1_a_client_that_could_not_be_opened_can_be_opened_later(directory: Path) -> None:
    rush = Rush("net", f"unix://{directory}/own.sock")
    with pytest.raises(RushConnectionError):
        await rush
    assert "not open" in repr(rush)
    with server_at(directory):
        async with rush:
            assert await rush.counts() == Counts()


async def test_row_2_an_argument_wins_over_the_environment(rush_server: RushConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_URL", f"redis://127.0.0.1:{free_port()}")
    for config in (rush_server, rush_server.url):
        async with Rush("net", config) as rush:
            assert rush.config.url == rush_server.url
    with pytest.raises(RushConnectionError):
        await Rush("net")


async def test_row_2_rush_url_wins_over_redis_url_and_that_over_the_embedded_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server_at(directory) as socket:
        monkeypatch.setenv("REDIS_URL", f"unix://{socket}")
        monkeypatch.delenv("RUSH_URL", raising=False)
        async with Rush("net") as rush:
            assert rush.config.url == f"unix://{socket}"
        # Settings without an address leave the address to the environment.
        async with Rush("net", RushConfig(connect_timeout=3)) as rush:
            assert (rush.config.url, rush.config.connect_timeout) == (f"unix://{socket}", 3)
        monkeypatch.setenv("RUSH_URL", f"redis://127.0.0.1:{free_port()}")
        with pytest.raises(RushConnectionError):
            await Rush("net")
        monkeypatch.setenv("RUSH_URL", "")  # as if it were not set
        async with Rush("net") as rush:
            assert rush.config.url == f"unix://{socket}"


async def test_row_2_a_data_dir_keeps_the_data_for_the_next_program(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_URL", f"redis://127.0.0.1:{free_port()}")
    data_dir = directory / "results"
    async with Rush("net", data_dir=data_dir) as rush, RushWorker("net", data_dir=str(data_dir)) as worker:
        assert worker.config.url == rush.config.url
        (key,) = await worker.push_running_tasks([XS])
        await worker.finish_tasks(key, [{"y": 1}])
    rush = await rsh("net", data_dir=data_dir)
    assert (await rush.counts()).finished == 1
    await rush.aclose()
    with pytest.raises(RushConfigError, match="leave one of the two out"):
        Rush("net", "redis://host", data_dir=data_dir)
    monkeypatch.delenv("RUSH_URL")
    (directory / "file").touch()
    monkeypatch.setenv("RUSH_DATA_DIR", str(directory / "file"))
    with pytest.raises(ServerStartError, match=r"cannot be used.*The address came from the environment variable RUSH_DATA_DIR"):
        await Rush("net")


def test_row_2_a_bad_address_names_the_variable_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_URL", "http://:hidden@host")
    with pytest.raises(RushConfigError, match="RUSH_URL") as caught:
        Rush("net")
    assert "hidden" not in str(caught.value)


# settings


@pytest.mark.parametrize("config", [7, b"redis://host", ["redis://host"], RushConfig])
def test_what_is_no_config_is_refused(config: Any) -> None:
    with pytest.raises(RushConfigError, match="URL, a RushConfig or None"):
        Rush("net", config)


async def test_a_url_option_that_is_unknown_is_named(directory: Path) -> None:
    with pytest.raises(RushConfigError, match="nonsense"):
        await Rush("net", f"unix://{directory}/own.sock?nonsense=1")


# who answers


async def test_a_server_older_than_7_0_is_refused() -> None:
    async with stub(hello(b"redis", b"6.2.14")) as port:
        with pytest.raises(RushConnectionError, match=r"is redis 6\.2\.14: 7\.0 or newer is needed, please upgrade it$"):
            await Rush("net", f"redis://127.0.0.1:{port}")


async def test_a_server_that_does_not_know_hello_is_too_old() -> None:
    async with stub(b"-ERR unknown command `HELLO`, with args beginning with: \r\n") as port:
        with pytest.raises(RushConnectionError, match=r"older than Redis 7\.0"):
            await Rush("net", f"redis://127.0.0.1:{port}")


async def test_a_valkey_older_than_7_2_is_refused() -> None:
    async with stub(hello(b"valkey", b"7.1.0")) as port:
        with pytest.raises(RushConnectionError, match=r"is valkey 7\.1\.0: 7\.2 or newer"):
            await Rush("net", f"redis://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n", b"*0\r\n", b"$-1\r\n", b"*2\r\n:1\r\n:2\r\n", b"\x15\x03\x01"]
)
async def test_what_is_no_redis_is_refused(answer: bytes) -> None:
    async with stub(answer) as port:
        with pytest.raises(RushConnectionError, match=f"127.0.0.1:{port}"):
            await Rush("net", RushConfig(url=f"redis://127.0.0.1:{port}", connect_timeout=0.5))


@pytest.mark.parametrize("answers", [(), (b"-ERR unknown command\r\n",)], ids=["silent", "plain"])
async def test_the_error_of_a_server_without_tls_names_it(answers: tuple[bytes, ...]) -> None:
    async with stub(*answers) as port:
        config = RushConfig(f"rediss://127.0.0.1:{port}", connect_timeout=0.2)
        with pytest.raises(RushConnectionError, match="rediss:// speaks TLS: check that the server does on this port"):
            await Rush("net", config)


async def test_a_server_that_hangs_up_is_an_error() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        begin = time.monotonic()
        with pytest.raises(RushConnectionError, match=f"127.0.0.1:{port}"):
            await Rush("net", f"redis://127.0.0.1:{port}")
        assert time.monotonic() - begin < 3


# who may come in


async def test_a_password_that_is_wrong_missing_or_right(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUSH_PASSWORD", raising=False)
    with server_at(directory, "--requirepass", PASSWORD) as socket:
        for url in (f"unix://:wrongpass@{socket}", f"unix://nobody:{QUOTED}@{socket}"):
            with pytest.raises(RushConnectionError, match="refuses this user or password") as caught:
                await Rush("net", url)
            assert "wrongpass" not in str(caught.value)
            assert QUOTED not in str(caught.value)
        with pytest.raises(RushConnectionError, match=r"wants a user or password.*redis://user:password@host"):
            await Rush("net", f"unix://{socket}")
        monkeypatch.setenv("RUSH_PASSWORD", PASSWORD)
        with pytest.raises(RushConnectionError, match="RUSH_PASSWORD counts only for a URL in RUSH_URL or REDIS_URL"):
            await Rush("net", f"unix://{socket}")
        for url in (f"unix://:{QUOTED}@{socket}", f"unix://default:{QUOTED}@{socket}"):
            async with Rush("net", url) as rush:
                await rush.push_tasks([XS])
                await rush.wait_until(lambda counts: counts.queued == 1, timeout=5)
                assert PASSWORD not in repr(rush.config)
                assert QUOTED not in repr(rush.config)
                await rush.reset()


@contextmanager
def user_with(directory: Path, *rules: str) -> Generator[str]:
    """A server with a user of these rights; the url of that user."""
    with server_at(directory) as socket, redis.Redis(unix_socket_path=socket) as client:
        client.execute_command("ACL", "SETUSER", "bear", "on", ">honey", *rules)  # pyright: ignore[reportUnknownMemberType]
        yield f"unix://bear:honey@{socket}"


@pytest.mark.parametrize(
    "rules",
    [
        ["~*", "+@all"],
        ["~*", "&other:*", "+@all"],
        ["~*", "&*", "+@all", "-spublish"],
        ["~other:*", "&*", "+@all"],
        ["~*", "&*", "+@all", "-@scripting"],
        ["~*", "&*", "+@all", "-evalsha"],
        ["~*", "&*", "+@all", "-@write"],
        ["~*", "&*", "+@all", "-hmget"],
        ["~*", "&*", "-@all", "+hello", "+auth"],
        ["~*", "&*", "+@all", "-ssubscribe"],
    ],
    ids=" ".join,
)
async def test_the_error_for_a_user_without_rights_names_the_missing_rule(directory: Path, rules: list[str]) -> None:
    with user_with(directory, *rules) as url:
        with pytest.raises(RushConnectionError, match=r"ACL SETUSER <user> ~rush:\*") as caught:
            async with Rush("net", RushConfig(url=url, retry_deadline=1)) as rush:
                # What can be known at once is said at once; listening is asked for when it is needed.
                assert rules[-1] in ("-ssubscribe", "-@write")
                async with asyncio.timeout(5):
                    await rush.push_tasks([XS])
                    await rush.wait_until(lambda counts: counts.queued == 1)
        assert "honey" not in str(caught.value)


async def test_a_transaction_that_is_refused_says_why(directory: Path) -> None:
    with user_with(directory, "~*", "&*", "+@all", "-hscan") as url:
        async with Rush("net", url) as rush:
            with pytest.raises(RushConnectionError, match=r"hscan.*ACL SETUSER <user> ~rush:\*"):
                await rush.fetch_queued_tasks()


async def test_a_user_with_the_rights_that_errors_name_can_do_everything(directory: Path) -> None:
    with user_with(directory, "resetchannels") as url:
        with pytest.raises(RushConnectionError) as caught:
            await Rush("net", url)
    rule = str(caught.value).partition("ACL SETUSER <user> ")[2]
    assert rule.endswith("+info +time")
    with user_with(directory, "resetchannels", *rule.split()) as url:
        async with Rush("net", url) as rush, rush.events() as events:
            async with RushWorker("net", url) as worker:
                await rush.push_tasks([XS] * 3)
                await anext(events)
                async for task in worker.tasks(timeout=0.05):
                    async with task:
                        task.ys = {"y": 1}
                (failed,) = await rush.push_failed_tasks([XS])
                await rush.retry_tasks(failed)
                await rush.empty_queue()
                assert (await rush.fetch_tasks()).height == 4
                await rush.wait_for_tasks(failed)
            await rush.worker_info()
            await rush.reset()


# databases


async def test_databases_of_one_server_are_apart(directory: Path) -> None:
    with server_at(directory) as socket:
        async with Rush("net", f"unix://{socket}?db=0") as zero, Rush("net", f"unix://{socket}?db=1") as one:
            async with zero.events() as events:
                await one.push_tasks([XS] * 2)
                (key,) = await zero.push_tasks([XS])
                event = await asyncio.wait_for(anext(events), 5)
                assert getattr(event, "keys", ()) == (key,)
            assert await one.counts() == Counts(queued=2)
            assert await zero.counts() == Counts(queued=1)
            await one.reset()
            assert await zero.counts() == Counts(queued=1)


# the order of use


CALLS: dict[str, Callable[[RushClient], Any]] = {
    "push_tasks": lambda rush: rush.push_tasks([XS]),
    "push_finished_tasks": lambda rush: rush.push_finished_tasks([XS], [XS]),
    "push_failed_tasks": lambda rush: rush.push_failed_tasks([XS]),
    "empty_queue": lambda rush: rush.empty_queue(),
    "retry_tasks": lambda rush: rush.retry_tasks(),
    "cancel_tasks": lambda rush: rush.cancel_tasks("key"),
    "counts": lambda rush: rush.counts(),
    "get_tasks": lambda rush: rush.get_tasks("key"),
    "keys_with_state": lambda rush: rush.keys_with_state(),
    "is_running_task": lambda rush: rush.is_running_task("key"),
    "is_failed_task": lambda rush: rush.is_failed_task("key"),
    "wait_for_tasks": lambda rush: rush.wait_for_tasks("key"),
    "wait_until": lambda rush: rush.wait_until(lambda counts: True),
    "fetch_finished_tasks": lambda rush: rush.fetch_finished_tasks(),
    "fetch_reports": lambda rush: rush.fetch_reports(),
    "fetch_new_tasks": lambda rush: rush.fetch_new_tasks(),
    "fetch_tasks": lambda rush: rush.fetch_tasks(),
    "fetch_tasks_with_state": lambda rush: rush.fetch_tasks_with_state(),
    "fetch_queued_tasks": lambda rush: rush.fetch_queued_tasks(),
    "fetch_running_tasks": lambda rush: rush.fetch_running_tasks(),
    "fetch_failed_tasks": lambda rush: rush.fetch_failed_tasks(),
    "events": lambda rush: rush.events().__aenter__(),
    "events_of_reports": lambda rush: rush.events(TaskReported).__aenter__(),
    "push_nothing": lambda rush: rush.push_tasks([]),
    "set_attrs": lambda rush: rush.set_attrs({"a": 1}),
    "set_no_attrs": lambda rush: rush.set_attrs({}),
    "attrs": lambda rush: rush.attrs(),
    "export": lambda rush: rush.export("an export.zip"),
    "import_archive": lambda rush: rush.import_archive("an export.zip"),
    "set_task_attrs": lambda rush: rush.set_task_attrs("key", {"a": 1}),
    "task_attrs": lambda rush: rush.task_attrs("key"),
    "stop_rules": lambda rush: rush.stop_rules(),
    "claim": lambda rush: rush.claim("a", 1),
    "ranking_add": lambda rush: rush.ranking("a").add("key", 1),
    "ranking_rank": lambda rush: rush.ranking("a").rank("key"),
    "ranking_best": lambda rush: rush.ranking("a").best(0),
    "stop_when": lambda rush: rush.stop_when(finished=2**40),
    "stop_when_better": lambda rush: rush.stop_when(target={"y": 0.0}),
    "resume": lambda rush: rush.resume(),
    "stop": lambda rush: rush.stop(),
    "wait_until_stopped": lambda rush: rush.wait_until_stopped(),
    "expire": lambda rush: rush.expire(3600),
    "ranking_size": lambda rush: rush.ranking("a").size(),
}
MANAGER_CALLS: dict[str, Callable[[Rush], Any]] = {
    "start_workers": lambda rush: rush.start_workers(begin_to_listen, 1),
    "detect_lost_workers": lambda rush: rush.detect_lost_workers(),
    "wait_for_workers": lambda rush: rush.wait_for_workers(1),
    "join_workers": lambda rush: rush.join_workers(),
    "stop_workers": lambda rush: rush.stop_workers(),
    "reset": lambda rush: rush.reset(),
    "worker_info": lambda rush: rush.worker_info(),
    "read_log": lambda rush: rush.read_log(),
    "print_log": lambda rush: rush.print_log(),
}
WORKER_CALLS: dict[str, Callable[[RushWorker], Any]] = {
    "push_running_tasks": lambda rush: rush.push_running_tasks([XS]),
    "finish_tasks": lambda rush: rush.finish_tasks("key", [XS]),
    "fail_tasks": lambda rush: rush.fail_tasks("key"),
    "report_tasks": lambda rush: rush.report_tasks("key", [XS]),
    "pop_task": lambda rush: rush.pop_task(0),
    "pop_named_task": lambda rush: rush.pop_task(key="key"),
    "tasks": lambda rush: anext(rush.tasks()),
    "proposals": lambda rush: anext(rush.proposals(lambda draw: XS)),
    "task": lambda rush: rush.task(XS).__aenter__(),
}
PROPERTIES: list[Callable[[RushClient], Any]] = [
    lambda rush: rush.n_queued_tasks,
    lambda rush: rush.n_running_tasks,
    lambda rush: rush.n_finished_tasks,
    lambda rush: rush.n_failed_tasks,
    lambda rush: rush.n_tasks,
    lambda rush: rush.stop_reason,
    lambda rush: rush.n_running_workers,
]


@pytest.mark.parametrize(
    ("client", "calls", "name"),
    [
        (RushClient, CALLS, "CALLS"),
        (SharedState, CALLS, "CALLS"),
        (Stopping, CALLS, "CALLS"),
        (Exporting, CALLS, "CALLS"),
        (Rush, MANAGER_CALLS, "MANAGER_CALLS"),
        (RushWorker, WORKER_CALLS, "WORKER_CALLS"),
    ],
)
def test_every_call_of_a_client_is_listed_here(client: type, calls: dict[str, Any], name: str) -> None:
    methods = {name: method for name, method in vars(client).items() if not name.startswith("_")}
    is_call = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    missing = [name for name, method in methods.items() if any(is_one(method) for is_one in is_call) and name not in calls]
    assert not missing, f"add {missing} to {name} of tests/client/test_session.py"


async def refuse_everything(rush: Rush, worker: RushWorker, match: str) -> None:
    """Every call of both clients raises a `NetworkStateError` with these words."""
    for client, calls in ((rush, CALLS | MANAGER_CALLS), (worker, CALLS | WORKER_CALLS)):
        for name, call in calls.items():
            with pytest.raises(NetworkStateError, match=match):
                await call(client)  # pyright: ignore[reportArgumentType]
                pytest.fail(f"{name} did not raise")
    for client in (rush, worker):
        with pytest.raises(NetworkStateError, match=match):
            client.reset_cache()
        for read in PROPERTIES:
            with pytest.raises(NetworkStateError, match=match):
                read(client)


async def test_before_opening_every_call_says_how_to_open(rush: Rush) -> None:
    await refuse_everything(Rush("net", rush.config), RushWorker("net", rush.config), "not open yet: write `async with Rush")


async def test_after_closing_every_call_says_that_it_is_closed(rush: Rush) -> None:
    async with Rush("net", rush.config) as closed, RushWorker("net", rush.config) as worker:
        pass
    await refuse_everything(closed, worker, "is closed: open a new one")
    async with Rush("net", rush.config) as again:
        await again.reset()


async def begin_to_listen(worker: RushWorker) -> None:
    async with worker.events():
        pass


async def wait_for_counts(worker: RushWorker) -> None:
    await worker.wait_until(lambda counts: counts.queued > 0)


@pytest.mark.parametrize("wait", [begin_to_listen, wait_for_counts])
async def test_who_begins_to_listen_while_its_client_is_closed_does_not_wait_for_ever(
    rush_worker: RushWorker, proxy: Proxy, wait: Callable[[RushWorker], Awaitable[None]]
) -> None:
    with pytest.raises(NetworkStateError, match="is closed: open a new one"):
        await closed_before_it_hears(rush_worker, proxy, wait)


async def wait_for_a_task(worker: RushWorker) -> None:
    assert await worker.pop_task(None) is None


async def wait_for_a_place(worker: RushWorker) -> None:
    async with worker.task(XS, budget=1) as task:
        assert task is None


@pytest.mark.parametrize("wait", [wait_for_a_task, wait_for_a_place])
async def test_who_begins_to_wait_for_something_to_do_while_its_client_is_closed_gets_nothing(
    rush_worker: RushWorker, proxy: Proxy, wait: Callable[[RushWorker], Awaitable[None]]
) -> None:
    await rush_worker.push_running_tasks([XS])  # the budget of one is taken
    await closed_before_it_hears(rush_worker, proxy, wait)


async def closed_before_it_hears(other: RushWorker, proxy: Proxy, wait: Callable[[RushWorker], Awaitable[None]]) -> None:
    """What comes of a wait whose worker is closed before events can be heard."""
    worker = await RushWorker(other.network_id, replace(other.config, url=proxy.url))
    proxy.refuse()
    proxy.cut_all("pubsub")  # nothing is confirmed any more
    waiting = asyncio.ensure_future(wait(worker))
    await wait_until(lambda: worker._net.feed.following)  # pyright: ignore[reportPrivateUsage]
    await worker.aclose()
    await asyncio.wait_for(waiting, 5)


async def pops(worker: RushWorker) -> None:
    await worker.pop_task(0)


async def pushes(worker: RushWorker) -> None:
    await worker.push_running_tasks([XS])


async def opens_a_block(worker: RushWorker) -> None:
    async with worker.task(XS) as task:
        task.ys = {"y": 1.0}


async def opens_a_block_in_a_budget(worker: RushWorker) -> None:
    async with worker.task(XS, budget=100) as task:
        if task is not None:
            task.ys = {"y": 1.0}


@pytest.mark.parametrize("take", [pops, pushes, opens_a_block, opens_a_block_in_a_budget])
async def test_a_worker_that_is_closed_while_it_is_given_tasks_leaves_none_running(
    rush: Rush, take: Callable[[RushWorker], Awaitable[None]]
) -> None:
    for ticks in range(4):
        worker = await RushWorker(rush.network_id, replace(rush.config, response_timeout=11.0))
        if take is pops:
            await rush.push_tasks([XS])
        taking = asyncio.ensure_future(take(worker))
        for _ in range(ticks):
            await asyncio.sleep(0)
        await worker.aclose()
        await asyncio.gather(taking, return_exceptions=True)
        assert (await rush.counts()).running == 0


async def test_a_worker_that_is_being_closed_takes_nothing_more(rush_worker: RushWorker) -> None:
    closing = asyncio.ensure_future(rush_worker.aclose())
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(NetworkStateError, match="is leaving network"):
        await rush_worker.push_running_tasks([XS])
    await closing


async def test_opening_twice_says_to_make_a_new_one(rush: Rush) -> None:
    for client in (Rush("net", rush.config), RushWorker("net", rush.config)):
        async with client:
            with pytest.raises(NetworkStateError, match="opened once, make a new one"):
                await client
            with pytest.raises(NetworkStateError, match="opened once, make a new one"):
                async with client:
                    raise AssertionError("the block must not open")
            assert await client.counts() == Counts()
        with pytest.raises(NetworkStateError, match="opened once, make a new one"):
            await client
    async with Rush("net", rush.config) as again:
        await again.reset()


async def test_closing_again_or_without_opening_does_nothing(rush: Rush) -> None:
    client = Rush("net", rush.config)
    await client.aclose()
    await client
    await client.aclose()
    await client.aclose()


async def test_a_client_is_opened_at_once_by_await(rush: Rush) -> None:
    for opened in (await Rush("net", rush.config), await rsh("net", rush.config)):
        assert isinstance(opened, Rush)
        assert opened.network_id == "net"
        assert await opened.counts() == Counts()
        await opened.aclose()


async def test_making_a_client_does_no_io() -> None:
    for client in (Rush("net", f"redis://127.0.0.1:{free_port()}"), RushWorker("net", f"redis://127.0.0.1:{free_port()}")):
        assert client.network_id == "net"
        assert "not open" in repr(client)


async def test_opened_in_one_task_and_closed_in_another(rush: Rush) -> None:
    async def opened() -> tuple[Rush, RushWorker]:
        manager = await Rush(rush.network_id, rush.config)
        return manager, await RushWorker(rush.network_id, rush.config)

    manager, worker = await asyncio.create_task(opened())
    await asyncio.create_task(manager.push_tasks([XS]))
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(worker.pop_task(None))
    waiting = asyncio.create_task(worker.pop_task(None))
    await asyncio.create_task(worker.aclose())
    assert await waiting is None
    await asyncio.create_task(manager.aclose())
    assert await rush.counts() == Counts(failed=1)


async def test_an_event_stream_opened_in_one_task_is_read_and_closed_in_others(rush: Rush) -> None:
    events = rush.events()
    await asyncio.create_task(events.__aenter__())
    (key,) = await rush.push_tasks([XS])
    event = await asyncio.wait_for(asyncio.ensure_future(anext(events)), 5)
    assert getattr(event, "keys", ()) == (key,)
    await asyncio.create_task(events.__aexit__())


async def test_row_21_closing_leaves_the_tasks_in_the_database(rush: Rush) -> None:
    async with Rush(rush.network_id, rush.config) as first:
        keys = await first.push_tasks([XS] * 3)
    async with Rush(rush.network_id, rush.config) as second:
        assert (await second.keys_with_state("queued"))["queued"] == keys


# loops, threads, processes


async def test_a_client_used_from_another_loop_says_so(rush: Rush, rush_worker: RushWorker) -> None:
    async def use() -> None:
        for name, call in (CALLS | MANAGER_CALLS).items():
            with pytest.raises(NetworkStateError, match="opened in another event loop: open one client in each"):
                await call(rush)  # pyright: ignore[reportArgumentType]
                pytest.fail(f"{name} did not raise")
        for name, call in WORKER_CALLS.items():
            with pytest.raises(NetworkStateError, match="opened in another event loop"):
                await call(rush_worker)
                pytest.fail(f"{name} did not raise")
        with pytest.raises(NetworkStateError, match="opened in another event loop"):
            await rush.aclose()
        with pytest.raises(NetworkStateError):
            await rush

    in_another_loop(use)
    assert await rush.counts() == Counts()


async def test_several_loops_have_clients_of_their_own(rush: Rush) -> None:
    async def work() -> str:
        async with Rush(rush.network_id, rush.config) as mine, RushWorker(rush.network_id, rush.config) as worker:
            async with worker.task(XS) as task:
                task.ys = {"y": 1}
            await mine.wait_until(lambda counts: counts.finished >= 1, timeout=5)
            assert task.key in (await mine.fetch_finished_tasks())["keys"]
            return task.key

    async with rush.events() as events:
        keys = await asyncio.gather(*[asyncio.to_thread(in_another_loop, work) for _ in range(4)])
        assert sorted((await rush.fetch_finished_tasks())["keys"]) == sorted(keys)
        assert await asyncio.wait_for(anext(events), 5)
    assert await rush.counts() == Counts(finished=4)


def test_loops_one_after_the_other_have_clients_of_their_own(rush_server: RushConfig) -> None:
    async def work(n: int) -> None:
        async with Rush("net", rush_server) as rush:
            await rush.push_tasks([XS])
            await rush.wait_until(lambda counts: counts.queued == n, timeout=5)
            if n == 3:
                await rush.reset()

    for n in (1, 2, 3):
        asyncio.run(work(n))


def in_a_child(main: Callable[[], str]) -> str:
    """What a forked child says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = main()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


async def test_after_a_fork_the_childs_clients_are_dead_and_own_nothing(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    assert rush_worker.n_running_tasks == 1

    def main() -> str:
        async def use() -> str:
            await refuse_in_child()
            for client in (rush, rush_worker):
                await client.aclose()  # it closes nothing of the parent's
            return "all refused"

        async def refuse_in_child() -> None:
            for client, calls in ((rush, CALLS | MANAGER_CALLS), (rush_worker, CALLS | WORKER_CALLS)):
                for name, call in calls.items():
                    with pytest.raises(NetworkStateError, match="before this process was forked: open a new client"):
                        await call(client)  # pyright: ignore[reportArgumentType]
                        pytest.fail(f"{name} did not raise")

        return asyncio.run(use())

    assert in_a_child(main) == "all refused"
    assert await rush.is_running_task(key) == [True]
    assert await rush_worker.finish_tasks(key, [{"y": 1}]) == [key]


@pytest.mark.parametrize("client", ["rush", "worker"])
async def test_after_a_fork_the_childs_counters_are_dead_too(rush: Rush, rush_worker: RushWorker, client: str) -> None:
    used: RushClient = rush if client == "rush" else rush_worker  # one was read before, the other was not
    assert rush_worker.n_queued_tasks == 0

    def main() -> str:
        for read in PROPERTIES:
            with pytest.raises(NetworkStateError, match="forked"):
                read(used)
        return "all refused"

    assert in_a_child(main) == "all refused"


async def test_a_forked_child_opens_clients_of_its_own(rush: Rush) -> None:
    (first,) = await rush.push_tasks([XS])
    url = rush.config.url

    def main() -> str:
        async def push() -> str:
            async with Rush(rush.network_id, url) as mine:
                (key,) = await mine.push_tasks([XS])
                return key

        return asyncio.run(push())

    key = in_a_child(main)
    (second,) = await rush.push_tasks([XS])
    assert (await rush.keys_with_state("queued"))["queued"] == [first, key, second]


async def test_a_forked_child_of_the_embedded_server_leaves_it_running(rush: Rush) -> None:
    def main() -> str:
        async def use() -> str:
            async with Rush(rush.network_id, rush.config) as mine:
                return str(await mine.counts())

        return asyncio.run(use())

    await rush.push_tasks([XS])
    for _ in range(2):
        assert in_a_child(main) == str(Counts(queued=1))
    assert await rush.counts() == Counts(queued=1)


# sharing


async def test_clients_of_one_server_share_one_connection_and_one_subscription(rush: Rush, raw: Any) -> None:
    await wait_until(lambda: rush._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
    before = len(raw.client_list())  # that of `raw`, and two of `rush`
    async with (
        Rush(rush.network_id, rush.config) as second,
        Rush("another", rush.config) as third,
        RushWorker("another", rush.config) as worker,
        third.events(),
    ):
        await asyncio.gather(*[client.push_tasks([XS]) for client in (rush, second, third, worker) for _ in range(20)])
        await second.wait_until(lambda counts: counts.queued == 40, timeout=5)
        assert len(raw.client_list()) == before
        assert third.n_queued_tasks == 40
        await third.empty_queue()
        await worker.aclose()
        await third.reset()
    assert await rush.counts() == Counts(queued=40)
    assert len(raw.client_list()) == before


async def test_the_last_client_closes_the_connections(rush: Rush, raw: Any) -> None:
    await wait_until(lambda: rush._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
    before = len(raw.client_list())
    config = replace(rush.config, response_timeout=10.5)
    async with Rush("net", config) as first:
        async with Rush("net", config) as second, RushWorker("net", config):
            await second.wait_until(lambda counts: counts.total == 0)
            assert len(raw.client_list()) == before + 2
        assert len(raw.client_list()) > before
        await first.reset()
    await wait_until(lambda: len(raw.client_list()) == before)


# what is shown


async def test_joining_a_network_that_holds_tasks_logs_their_number(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rush_async")
    async with Rush(rush.network_id, rush.config):
        pass
    assert [text for text in caplog.messages if "holds tasks" in text] == []
    await rush.push_tasks([XS] * 1_234)
    await rush.push_failed_tasks([XS])
    async with Rush(rush.network_id, replace(rush.config, response_timeout=10.5)):
        pass
    (text,) = [text for text in caplog.messages if "holds tasks" in text]
    assert rush.network_id in text
    assert "1,234 queued, 0 running, 0 finished, 1 failed" in text


async def test_a_client_prints_as_in_the_tutorial(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([XS] * 25)
    await rush_worker.push_running_tasks([XS])
    lines = str(rush).splitlines()
    assert "<Rush>" in lines[0]
    assert rush.network_id in lines[0]
    assert lines[1:] == [
        "• Running Workers: 1",
        "• Queued Tasks: 25",
        "• Running Tasks: 1",
        "• Finished Tasks: 0",
        "• Failed Tasks: 0",
    ]
    assert "<RushWorker>" in repr(rush_worker)
    assert repr(rush_worker).endswith(f"• This Worker: {rush_worker.worker_id}")
    assert "Queued Tasks: 25" in repr(rush_worker)
    html = rush._repr_html_()  # pyright: ignore[reportPrivateUsage]
    assert "<td>Queued Tasks</td><td>25</td>" in html
    await rush.stop_workers(rush_worker.worker_id, timeout=0)
    await wait_until(lambda: rush_worker.terminated)
    html = rush_worker._repr_html_()  # pyright: ignore[reportPrivateUsage]
    assert f"<td>This Worker</td><td>{rush_worker.worker_id} (takes no new task)</td>" in html


async def test_what_a_client_prints_follows_the_network(rush: Rush) -> None:
    assert "Queued Tasks: 0" in repr(rush)
    async with Rush(rush.network_id, replace(rush.config, response_timeout=10.5)) as elsewhere:
        await elsewhere.push_tasks([XS] * 2)
        async with RushWorker(rush.network_id, elsewhere.config):
            await wait_until(lambda: "Queued Tasks: 2" in repr(rush) and "Running Workers: 1" in repr(rush))
        await wait_until(lambda: "Running Workers: 0" in repr(rush))


async def test_html_of_any_network_id_is_harmless(rush: Rush) -> None:
    async with Rush("<script>&: ", rush.config) as odd:
        for client in (odd, Rush("<script>&: ", rush.config)):
            html = client._repr_html_()  # pyright: ignore[reportPrivateUsage]
            assert "<script>" not in html
            assert "&lt;script&gt;&amp;" in html


async def test_a_client_prints_whenever_it_is_asked(rush: Rush) -> None:
    client = Rush("net", rush.config)
    assert "'net', not open" in repr(client)
    async with client:
        assert "net" in repr(client)
        # A debugger or a log handler may print it from anywhere.
        shown: list[str] = []
        thread = threading.Thread(target=lambda: shown.append(repr(client)))
        thread.start()
        thread.join()
        assert "Queued Tasks: 0" in shown[0]
    assert "'net', not open" in repr(client)


async def test_read_only_properties(rush: Rush, rush_worker: RushWorker) -> None:
    for client, name in ((rush, "network_id"), (rush, "config"), (rush_worker, "worker_id"), (rush, "n_tasks")):
        with pytest.raises(AttributeError):
            setattr(client, name, "other")


async def test_a_second_worker_of_a_name_takes_nothing_from_the_first(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(RushConfigError, match="is or was in use"):
        await RushWorker(rush.network_id, rush.config, worker_id=rush_worker.worker_id)
    popping = asyncio.ensure_future(rush_worker.pop_task(None))
    await rush.stop_workers(rush_worker.worker_id, timeout=0)
    assert await asyncio.wait_for(popping, 5) is None


@pytest.mark.parametrize("ticks", range(6))
async def test_a_client_that_is_closed_while_it_opens_is_closed_behind_that(rush: Rush, ticks: int) -> None:
    worker = RushWorker(rush.network_id, replace(rush.config, response_timeout=11.0))
    opening = asyncio.ensure_future(worker.__aenter__())
    for _ in range(1 + ticks):
        await asyncio.sleep(0)
    await worker.aclose()
    assert await opening is worker
    with pytest.raises(NetworkStateError, match="is closed: open a new one"):
        await worker.counts()
    assert (await rush.worker_info())["state"].to_list() == ["terminated"]


def test_event_loops_that_have_ended_are_forgotten(rush_server: RushConfig) -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with Rush("ended", rush_server) as rush, RushWorker("ended", rush_server) as worker:
            async with worker.task({"x": 1}) as task:
                task.ys = {"y": 1}
            await rush.fetch_finished_tasks()
        async with Rush("ended", rush_server) as rush:
            await rush.reset()

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3


async def test_clients_that_were_closed_are_forgotten(rush: Rush) -> None:
    async with rush.events():
        gone: list[weakref.ref[Rush]] = []
        for _ in range(5):
            async with Rush(rush.network_id, rush.config) as other:
                assert other.n_finished_tasks == 0
                gone.append(weakref.ref(other))
            del other
        gc.collect()
        assert [ref() for ref in gone] == [None] * 5


async def test_a_with_statement_says_async_with() -> None:
    rush: Any = Rush("net")
    with pytest.raises(TypeError, match=r"Rush\('net'\) is opened by `async with`"):
        with rush:
            pass


async def test_a_cancelled_wait_says_in_which_network(rush: Rush) -> None:
    for wait in (rush.wait_until(lambda _: False), rush.wait_until_stopped(need_workers=False)):
        waiting = asyncio.create_task(wait)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError, match=f"interrupted while it waited in network {rush.network_id!r}"):
            await waiting
