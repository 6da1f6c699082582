"""Runs what the pages tell a reader to run, as a new user would. A plugin of pytest;
sybil reads the Markdown.

    python -m pytest -p docs.run_pages -n 2 README.md docs
    python -m pytest -p docs.run_pages -n 0 docs/quickstart.md --pages-venv .venv -rP
    python -m pytest -p docs.run_pages -n 0 docs/quickstart.md --update-pages

Each page is followed from top to bottom in a copy of the checkout of its own, with a
fresh virtual environment that has nothing but rush_async. What a fence says decides
what happens to its block:

- `sh`: run in the page's shell, so what it exports or starts in the background is there
  for the blocks after it, until the page ends.
- `python`: entered line by line into one `python -m asyncio` that lasts for the page; a
  block that calls `asyncio.run()` is a program of its own.
- `python title="search.py"`, or any other title that is the name of a file: written to
  that file.
- `text title="output"`: what the block before it printed. Numbers with a decimal point,
  times, ages, keys and worker ids may differ, and `...` stands for anything. With
  `--update-pages` the page gets what was printed.
- Any other title says why the block is left out: `sh title="on the cluster"`,
  `python title="in examples/random_search.py"`.

sybil's comments leave out more, and give a reason:

    <!-- skip: start if(True, reason="run by tests/test_x.py") -->
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import venv
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).resolve().parents[1]
_FILE_NAME = re.compile(r"\w[\w/-]*\.\w+")  # in the directory of the page, or below
_UNWANTED = (
    "RUSH_URL",
    "REDIS_URL",
    "RUSH_DATA_DIR",
    "RUSH_PASSWORD",
    "RUSH_NETWORK",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONWARNINGS",
    "VIRTUAL_ENV",
)
_VARIES = re.compile(
    r"\d{4}-\d\d-\d\d[T ][\d:.+]+(?: UTC|Z)?"  # a time
    r"|^\d\d:\d\d:\d\d\b"
    r"|\b(?:\d+ [smhd]\b ?){1,2}"  # an age
    r"|-?\d+\.\d+(?:e[+-]?\d+)?"
    r"|\b[a-z]+_[a-z]+_[0-9a-f]{6}\b"  # a worker id
    r"|\b(?=\w*\d)[A-Za-z0-9]{12}\b",  # a key
    re.MULTILINE,
)

# What `python -m asyncio` does with what is typed, without a terminal: lines in, a
# report a block out.
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
        sys.stdout.flush()
        print("0", file=reports)
    return 0

if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
"""


class PageError(Exception):
    """A block of a page did not do what the page promises."""


class Process:
    """A child that works block after block: its shell, or its Python. Each end is
    reported on a pipe of its own.
    """

    def __init__(
        self, words: list[str], place: Path, environment: dict[str, str]
    ) -> None:
        read, self.report_fd = os.pipe()
        self._reports = os.fdopen(read)
        # Files: a pipe that nothing reads would block the child. `end` closes them.
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        try:
            self._child = subprocess.Popen(
                [word.format(report=self.report_fd) for word in words],
                cwd=place,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=self._files[0],
                stderr=self._files[1],
                pass_fds=[self.report_fd],
                start_new_session=True,
                text=True,
            )
        finally:
            os.close(self.report_fd)

    def run(self, text: str) -> str:
        """Gives it a block and returns what it wrote to its standard output.

        Raises:
            PageError: it failed; with all that it wrote.
        """
        assert self._child.stdin is not None
        begins = [file.seek(0, os.SEEK_END) for file in self._files]
        self._child.stdin.write(text)
        self._child.stdin.flush()
        # pytest-timeout ends a block that takes too long.
        report = self._reports.readline().strip()
        for file, begin in zip(self._files, begins, strict=True):
            file.seek(begin)
        written, errors = (file.read() for file in self._files)
        if report != "0":
            raise PageError(f"failed:\n{written}{errors}")
        print(written, errors, sep="\n")
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
        self._reports.close()
        for file in self._files:
            file.close()


class Reader:
    """A new user who follows one page in a directory with the checkout in it.

    Attributes:
        written: what the last block wrote to its standard output.
        has_failed: whether a block failed, so that the page cannot be followed on.
        outputs: what to write into the pages, by the start and end of the fence.
    """

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self._place = place
        self._environment = environment
        self._shell: Process | None = None
        self._console: Process | None = None
        self.written = ""
        self.has_failed = False
        self.outputs: dict[Path, dict[tuple[int, int], str]] = {}

    def follow(self, language: str, text: str, title: str | None = None) -> None:
        """Does what a block asks for.

        Raises:
            PageError: it failed, or did not print what the page shows.
        """
        if title == "output":
            if not is_output(text, self.written):
                raise PageError(
                    f"the block above printed something else:\n{self.written}"
                )
            return
        self.has_failed = True
        if title is not None:
            file = self._place / title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        else:
            self.written = self._sh(text) if language == "sh" else self._python(text)
        self.has_failed = False

    def _sh(self, text: str) -> str:
        if self._shell is None:
            self._shell = Process(["bash", "-e"], self._place, self._environment)
        return self._shell.run(
            f"{{\n{text}\n}} </dev/null\necho $? >&{self._shell.report_fd}\n"
        )

    def _python(self, text: str) -> str:
        if "asyncio.run(" in text:
            (self._place / "program.py").write_text(text, "utf-8")
            return self._sh("python program.py")
        if self._console is None:
            console = self._place / ".console.py"
            console.write_text(_CONSOLE, "utf-8")
            self._console = Process(
                ["python", str(console), "{report}"], self._place, self._environment
            )
        return self._console.run(json.dumps(text) + "\n")

    def leave(self) -> None:
        """Ends what the page has started."""
        processes, self._console, self._shell = (self._console, self._shell), None, None
        for process in processes:
            if process is not None:
                process.end()


def is_output(shown: str, written: str) -> bool:
    """Whether a program that prints what a page shows may have written this."""
    want, got = (
        re.sub(r"[─═┬┴┼╪╞╡├┤┌┐└┘│┆]+", " ", _VARIES.sub("#", text))
        for text in (shown, written)
    )
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(want.strip(), got.strip(), flags)


# sybil

_fences = RawFencedCodeBlockLexer(
    re.compile(r'(?P<language>\w+)(?: +title="(?P<title>[^"\n]*)")?[ ]*\n')
)


def fences_of(document: Document) -> Iterable[Region]:
    """The fenced blocks of a page that name a language, in order."""
    for region in _fences(document):
        region.parsed = region.lexemes["source"]
        yield region


def is_followed(region: Region) -> bool:
    """Whether a reader has something to do with a fence: to run it, to write it to a
    file, or to see it printed.
    """
    language, title = region.lexemes["language"], region.lexemes["title"]
    if title is None:
        return language in ("sh", "python")
    return title == "output" or _FILE_NAME.fullmatch(title) is not None


def _parse(document: Document) -> Iterable[Region]:
    for region in fences_of(document):
        if is_followed(region):
            region.evaluator = _evaluate
            yield region


def _evaluate(example: Example) -> None:
    reader: Reader = example.namespace["reader"]
    if reader.has_failed:
        pytest.skip("a block above failed")
    lexemes = example.region.lexemes
    if (
        lexemes["title"] == "output"
        and example.namespace["updates"]
        and not is_output(example.parsed, reader.written)
    ):
        reader.outputs.setdefault(Path(example.path), {})[
            example.region.start, example.region.end
        ] = reader.written
        return
    reader.follow(lexemes["language"], example.parsed, lexemes["title"])


pytest_collect_file = Sybil(
    [_parse, SkipParser()],
    pattern="*.md",
    path=str(ROOT),
    fixtures=["reader", "updates"],
).pytest()


# pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest."""
    group = parser.getgroup("pages")
    group.addoption(
        "--pages-venv",
        type=Path,
        help="a virtual environment to use as it is, instead of a fresh one",
    )
    group.addoption(
        "--update-pages",
        action="store_true",
        help="write into the pages what their blocks print",
    )


@pytest.fixture(scope="session")
def updates(request: pytest.FixtureRequest) -> bool:
    """Whether the pages get what their blocks print."""
    return bool(request.config.getoption("--update-pages"))


@pytest.fixture(scope="session")
def pages_environment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The environment variables of a reader, with a virtual environment that has
    rush_async and nothing else.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in _UNWANTED
    }
    environment |= {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "POLARS_TABLE_WIDTH": "88",
        "COLUMNS": "88",
    }
    directory: Path | None = request.config.getoption("--pages-venv")
    if directory is None:
        directory = tmp_path_factory.mktemp("pages") / "venv"
        venv.create(directory, with_pip=True)
        with copy_of_checkout() as place:
            words = [
                str(directory / "bin" / "python"),
                "-m",
                "pip",
                "install",
                "--quiet",
                str(place),
            ]
            subprocess.run(words, check=True, env=environment, stdin=subprocess.DEVNULL)
    directory = directory.absolute()
    path = f"{directory / 'bin'}{os.pathsep}{environment['PATH']}"
    return environment | {"PATH": path, "VIRTUAL_ENV": str(directory)}


@pytest.fixture(scope="module")  # a page is a module
def reader(pages_environment: dict[str, str]) -> Generator[Reader]:
    """A new user for each page."""
    with copy_of_checkout() as place:
        reader = Reader(place, pages_environment)
        yield reader
        reader.leave()
    for page, outputs in reader.outputs.items():
        text = page.read_text("utf-8")
        for (start, end), written in sorted(outputs.items(), reverse=True):
            opening, _, _ = text[start:end].partition("\n")
            text = f"{text[:start]}{opening}\n{written.rstrip()}\n```{text[end:]}"
        page.write_text(text, "utf-8")


@contextmanager
def copy_of_checkout() -> Generator[Path]:
    """A directory with the files of the repository, and no other."""
    with tempfile.TemporaryDirectory(prefix="page-") as directory:
        place = Path(directory) / "rush_async"
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, place / name)
        yield place
