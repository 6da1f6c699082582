"""Runs what the pages tell a reader to run: the README and everything in docs/, as a new user would.

    python -m docs.run_pages
    python -m docs.run_pages --page docs/quickstart.md --venv .venv

Each page is followed from top to bottom in a copy of the checkout of its own, with a fresh virtual environment that has
nothing but rush_async. What a fence says decides what happens to its block:

- `sh`: run in the page's shell, so what it exports or starts in the background is there for the blocks after it, until the
  page ends.
- `python`: entered line by line into one `python -m asyncio` that lasts for the page; a block that calls `asyncio.run()` is
  a program of its own.
- `python title="search.py"`, or any other title that is the name of a file: written to that file.
- `sh title="on the cluster"`, `python title="with Ray"`: left out, because of what the title says.
- Nothing but pieces of a program, `{{ examples/random_search.py branin }}`: left out, for the tests run the program.
- Anything else is for reading.

A page whose blocks of Python are run by a test of their own says so in a comment, `<!-- python is run by tests/test_x.py -->`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from docs.hooks import expanded, is_piece

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r'(?P<fence>`{3,})(?P<language>\w+)(?: +title="(?P<title>[^"]*)")?')
_ELSEWHERE = re.compile(r"<!-- (?P<language>sh|python) is run by (?P<test>\S+) -->")
_FILE_NAME = re.compile(r"\w[\w/-]*\.\w+")  # in the directory of the page, or below
_PATIENCE = 180.0  # seconds that a block may take: the first `pip install` of a page downloads what it needs
_UNWANTED = (
    "RUSH_URL",
    "REDIS_URL",
    "RUSH_DATA_DIR",
    "RUSH_PASSWORD",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONWARNINGS",
    "VIRTUAL_ENV",
)

# What `python -m asyncio` does with what is typed, without a terminal: lines in, a report a block out.
_CONSOLE = """
import ast, asyncio, codeop, json, os, sys, traceback, types

async def run(source, namespace):
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    typed = []
    for line in [*source.split("\\n"), ""]:
        typed.append(line)
        code = compiler("\\n".join(typed), "<page>", "single")
        if code is not None:
            typed = []
            given = types.FunctionType(code, namespace)()
            if asyncio.iscoroutine(given):
                await given

async def main():
    namespace = {"__name__": "__main__", "asyncio": asyncio}
    reports = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    sys.path.insert(0, "")
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            await run(json.loads(line), namespace)
        except BaseException:
            traceback.print_exc()
            print("1", file=reports)
            return 1
        print("0", file=reports)
    return 0

if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
"""


class PageError(Exception):
    """A block of a page did not do what the page promises."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: where its fence stands in the page.
        language: the word of the fence.
        title: what the reader sees above it, or None.
        text: what is in it.
    """

    line: int
    language: str
    title: str | None
    text: str

    @property
    def is_file(self) -> bool:
        """Whether it is the content of a file."""
        return self.title is not None and _FILE_NAME.fullmatch(self.title) is not None

    @property
    def is_for_running(self) -> bool:
        """Whether a reader is to run it."""
        return self.language in ("sh", "python")


def blocks_of(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order. Those that are indented, in a list or a note, count too."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        start = lines[at]
        mark = _FENCE.fullmatch(start.strip())
        at += 1
        if mark is None:
            if re.match(r" *```", start):
                while at < len(lines) and lines[at].strip() != "```":  # a block without a language, or with other attributes
                    at += 1
                at += 1
            continue
        indent, first = len(start) - len(start.lstrip()), at
        while at < len(lines) and lines[at].strip() != mark["fence"]:
            at += 1
        body = "\n".join(each[indent:] for each in lines[first:at])
        at += 1
        yield Block(first, mark["language"], mark["title"], body)


class Process:
    """A child that works block after block: its shell, or its Python. Each end is reported on a pipe of its own."""

    def __init__(self, words: list[str], place: Path, environment: dict[str, str]) -> None:
        self._from, to = os.pipe()
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by `end`
        try:
            self._child = subprocess.Popen(
                [word.format(report=to) for word in words],
                cwd=place,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=self.output,
                stderr=subprocess.STDOUT,
                pass_fds=[to],
                start_new_session=True,
                text=True,
            )
        finally:
            os.close(to)
        self.report_fd = to

    def run(self, text: str) -> str:
        """Gives it a block and returns what it wrote.

        Raises:
            PageError: it failed, or took too long; with what it wrote.
        """
        assert self._child.stdin is not None
        begin = self.output.seek(0, os.SEEK_END)
        self._child.stdin.write(text)
        self._child.stdin.flush()
        os.set_blocking(self._from, False)
        deadline, report = time.monotonic() + _PATIENCE, None
        while report is None and time.monotonic() < deadline:
            try:
                report = os.read(self._from, 64).strip()
            except BlockingIOError:
                if self._child.poll() is not None:
                    break  # what it has started may hold the pipe open
                time.sleep(0.005)
        self.output.seek(begin)
        written = self.output.read()
        if report != b"0":
            raise PageError(f"{'took too long' if report is None and self._child.poll() is None else 'failed'}:\n{written}")
        return written

    def end(self) -> None:
        """Ends it with everything that it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._child.pid, number)
            except ProcessLookupError:
                break
            try:
                self._child.wait(10)
            except subprocess.TimeoutExpired:
                continue
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()
        os.close(self._from)
        self.output.close()


class Reader:
    """A new user who follows one page in a directory with the checkout in it."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self._place = place
        self._environment = environment
        self._shell: Process | None = None
        self._console: Process | None = None
        self.written = ""  # by the last block

    def follow(self, block: Block) -> str:
        """Does what a block asks for; returns what was done."""
        self.written = ""
        if block.is_file:
            file = self._place / str(block.title)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text + "\n", "utf-8")
            return f"wrote {block.title}"
        if block.language == "sh":
            if self._shell is None:
                self._shell = Process(["bash", "-e"], self._place, self._environment)
            self.written = self._shell.run(f"{{\n{block.text}\n}} </dev/null\necho $? >&{self._shell.report_fd}\n")
            return "ran " + "; ".join(line for line in block.text.split("\n") if line)[:100]
        if "asyncio.run(" in block.text:
            self._run_program(block.text)
            return "ran a program"
        if self._console is None:
            console = self._place / ".console.py"
            console.write_text(_CONSOLE, "utf-8")
            self._console = Process(["python", str(console), "{report}"], self._place, self._environment)
        self.written = self._console.run(json.dumps(block.text) + "\n")
        return "entered Python"

    def _run_program(self, text: str) -> None:
        (self._place / "program.py").write_text(text + "\n", "utf-8")
        done = subprocess.run(
            ["python", "program.py"],
            cwd=self._place,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode:
            raise PageError(f"failed:\n{done.stdout}")
        self.written = done.stdout

    def leave(self) -> None:
        """Ends what the page has started."""
        processes, self._console, self._shell = (self._console, self._shell), None, None
        for process in processes:
            if process is not None:
                process.end()


def why_left_out(block: Block, elsewhere: Mapping[str, str]) -> str | None:
    """Why nobody is to run a block; None if they are. `elsewhere` has, by language, the test that runs it."""
    if block.is_file:
        return None
    if block.title is not None:
        return block.title
    if all(is_piece(line) for line in block.text.split("\n")):
        return ", ".join(line.strip(" {}") for line in block.text.split("\n"))
    return f"run by {elsewhere[block.language]}" if block.language in elsewhere else None


def run_page(page: str, venv_bin: Path, *, shows: bool = False) -> list[str]:
    """Follows a page; the complaint, if it cannot be followed to its end."""
    text = (ROOT / page).read_text("utf-8")
    elsewhere = {mark["language"]: mark["test"] for mark in _ELSEWHERE.finditer(text)}
    blocks = [block for block in blocks_of(text) if block.is_for_running or block.is_file]
    print(f"\n{page}" + ("" if blocks else ": nothing to run"), flush=True)
    with copy_of_checkout() as place:
        environment = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
        environment |= {"PATH": f"{venv_bin}{os.pathsep}{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        environment["VIRTUAL_ENV"] = str(venv_bin.parent)
        reader = Reader(place, environment)
        try:
            for block in blocks:
                if why := why_left_out(block, elsewhere):
                    print(f"  {block.line:>4}  left out: {why}", flush=True)
                    continue
                began = time.monotonic()
                done = reader.follow(replace(block, text=expanded(block.text, page=page)))
                print(f"  {block.line:>4}  {time.monotonic() - began:5.1f} s  {done}", flush=True)
                if shows and reader.written:
                    print(reader.written, flush=True)
        except (PageError, subprocess.TimeoutExpired) as error:
            return [f"{page}:{block.line}: the block {error}\n{block.text}"]  # pyright: ignore[reportPossiblyUnboundVariable]
        finally:
            reader.leave()
    return []


@contextmanager
def copy_of_checkout() -> Generator[Path]:
    """A directory with the files of the repository, and no other."""
    with tempfile.TemporaryDirectory(prefix="page-") as directory:
        place = Path(directory) / "rush_async"
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, place / name)
        yield place


def make_venv(directory: Path) -> Path:
    """A fresh virtual environment with rush_async and nothing else; the directory of its programs."""
    venv.create(directory, with_pip=True)
    with copy_of_checkout() as place:
        words = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", str(place)]
        environment = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
        subprocess.run(words, check=True, env=environment | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}, stdin=subprocess.DEVNULL)
    return directory / "bin"


def all_pages() -> list[str]:
    """The README, then the pages in the order of the site."""
    order = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8"))
    return ["README.md", *(f"docs/{page}" for page in order if (ROOT / "docs" / page).is_file())]


def main() -> int:
    """Runs the pages and names those that cannot be followed."""
    parser = argparse.ArgumentParser(description="Runs what the pages tell a reader to run.")
    parser.add_argument("--page", action="append", help="only this page; may be given several times")
    parser.add_argument("--venv", type=Path, help="a virtual environment to use as it is, instead of a fresh one")
    parser.add_argument("--show", action="store_true", help="show what the blocks wrote")
    options: Any = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pages-") as scratch:
        venv_bin = options.venv.absolute() / "bin" if options.venv else make_venv(Path(scratch) / "venv")
        complaints = [each for page in options.page or all_pages() for each in run_page(page, venv_bin, shows=options.show)]
    for complaint in complaints:
        print(f"\n{complaint}", file=sys.stderr)
    print(f"\n{len(complaints)} pages cannot be followed ({time.monotonic() - began:.0f} s)")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
