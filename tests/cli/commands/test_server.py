"""`rush-async server`, run as a process: it waits for signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from rush_async import Rush
from tests.cli.calling import call
from tests.cli.programs import Program, Run
from tests.embedded.users import ask
from tests.topology.servers import free_port

SERVER = (sys.executable, "-m", "rush_async", "server", "--data-dir")


async def lines_of(program: Program, n: int) -> list[str]:
    assert program.process.stdout is not None
    async with asyncio.timeout(30):
        return [(await program.process.stdout.readline()).decode().rstrip("\n") for _ in range(n)]


async def test_it_serves_programs_of_this_machine_and_others_and_keeps_the_data(run: Run, directory: Path) -> None:
    data_dir, port = directory / "data", free_port()
    (directory / "password.txt").write_text("se cret\n")
    words = (str(data_dir), "--port", str(port), "--password-file", str(directory / "password.txt"))
    server = await run(*SERVER, *words)
    said = await lines_of(server, 3)
    assert said[0].endswith(f", data in {data_dir}")
    assert said[1] == f"programs of this machine: --data-dir {data_dir}, or RUSH_DATA_DIR={data_dir}"
    assert said[2] == f"others: RUSH_URL=redis://127.0.0.1:{port}, and the password in RUSH_PASSWORD"
    process = psutil.Process(server.process.pid)
    listens: Any = psutil.Process(int(said[0].split()[2].rstrip(","))).net_connections("tcp")
    assert {connection.laddr.ip for connection in listens} in ({"127.0.0.1"}, {"127.0.0.1", "::1"})
    assert not [each for each in (process, *process.children(recursive=True)) if "cret" in " ".join(each.cmdline())]
    async with Rush("net", f"redis://:se%20cret@127.0.0.1:{port}") as far:
        await far.push_tasks([{"x": 1}])
    # Another server is refused; a program that names the directory joins.
    second = await run(*SERVER, str(data_dir))
    code, errors = await second.ended()
    assert code == 69
    assert "has a server already (process " in errors
    near = await run(sys.executable, "-c", JOIN, str(data_dir))
    assert (await lines_of(near, 1)) == ["1"]
    server.signal(signal.SIGTERM)
    assert await server.ended() == (
        0,
        f"ended by SIGTERM; the data are in {data_dir}; other programs still use it, and it ends with the last of them\n",
    )
    assert near.process.stdin is None
    near.signal(signal.SIGTERM)
    await near.process.wait()
    # It ends alone, with the data.
    alone = await run(*SERVER, str(data_dir), RUSH_APPENDFSYNC="always")
    await lines_of(alone, 2)
    async with Rush("net", data_dir=data_dir) as again:
        assert b"always" in ask(again.config.url or "", "CONFIG", "GET", "appendfsync")
    alone.signal(signal.SIGINT)
    assert await alone.ended() == (0, f"ended by SIGINT; the data are in {data_dir}\n")
    async with Rush("net", data_dir=data_dir) as again:
        assert (await again.counts()).queued == 1


JOIN = """
import asyncio, signal, sys
from rush_async import Rush
async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with Rush("net", data_dir=sys.argv[1]) as rush:
        print((await rush.counts()).queued, flush=True)
        await ended.wait()
asyncio.run(main())
"""


async def test_a_server_that_dies_for_good_ends_the_program(run: Run, directory: Path) -> None:
    server = await run(*SERVER, str(directory))
    pid = int((await lines_of(server, 2))[0].split()[2].rstrip(","))
    watchdog: Any = psutil.Process(pid).parent()
    watchdog.kill()
    code, errors = await server.ended()
    assert code == 1
    assert f"the server has died: the end of {directory}/rush.log may say why" in errors


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ("--data-dir {} --port 6379", 78, "a port needs a password"),
        ("--data-dir {} --port 6379 --password-file {}/none", 78, "the password cannot be read"),
        ("--data-dir {} --port 70000", 2, "'70000' is no port"),
        ("--data-dir {} --bind 0.0.0.0", 2, "--bind and --password-file are for a --port"),
        ("", 2, "required: --data-dir"),
    ],
)
async def test_wrong_usage_is_refused(
    words: str,
    code: int,
    complaint: str,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RUSH_PASSWORD", "RUSH_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    called = await call(capsys, "server", *words.replace("{}", str(directory)).split())
    assert called.code == code
    assert complaint in called.errors
    assert os.listdir(directory) == []
