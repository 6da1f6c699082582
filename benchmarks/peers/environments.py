"""A virtual environment for each peer, because some need an older redis-py than ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEFAULT_DIRECTORY", "PEERS", "Peer", "install", "python_of"]

DEFAULT_DIRECTORY = Path("~/.cache/rush_async-benchmarks").expanduser()


@dataclass(frozen=True)
class Peer:
    """What a peer needs.

    Attributes:
        pins: exact versions of the packages, with a fast parser (hiredis) and event loop (uvloop) if the peer can use them.
        least_python: the oldest Python that it runs on.
    """

    pins: tuple[str, ...]
    least_python: tuple[int, int] = (3, 11)


PEERS = {
    "optuna": Peer(("optuna==5.0.0", "redis==8.1.0", "hiredis==3.5.0")),
    "arq": Peer(("arq==0.28.0", "redis==5.3.1", "hiredis==3.5.0", "uvloop==0.23.0")),
    # saq imports typing_extensions but does not require it.
    "saq": Peer(("saq==0.26.4", "redis==7.4.1", "hiredis==3.5.0", "uvloop==0.23.0", "typing_extensions==4.16.0")),
    "streaq": Peer(("streaq==7.2.0", "coredis==6.9.0", "uvloop==0.23.0")),
    "taskiq": Peer(("taskiq==0.13.0", "taskiq-redis==1.2.4", "redis==8.1.0", "hiredis==3.5.0", "uvloop==0.23.0")),
    "docket": Peer(("pydocket==0.27.0", "redis==8.1.0", "hiredis==3.5.0", "uvloop==0.23.0")),
    "ardiq": Peer(("ardiq==1.2.0", "msgpack==1.2.4", "uvloop==0.23.0"), least_python=(3, 12)),
}


def python_of(name: str, directory: Path) -> Path | None:
    """The Python of a peer's environment, or None if it is not installed or has other versions."""
    environment = directory / name
    note = environment / "installed"
    if note.is_file() and note.read_text("utf-8").split() == list(PEERS[name].pins):
        return environment / "bin" / "python"
    return None


def install(names: Iterable[str], directory: Path) -> None:
    """Makes the environments that do not exist, and prints a line for each."""
    for name in names:
        print(f"{name}: {'already there' if python_of(name, directory) else _install(name, directory)}", flush=True)


def _install(name: str, directory: Path) -> str:
    peer = PEERS[name]
    base = _base_python(peer.least_python)
    if base is None:
        needed, ours = (".".join(map(str, version[:2])) for version in (peer.least_python, sys.version_info))
        return f"left out: it needs Python {needed} or newer, this one is {ours}, and the PATH has no other"
    environment = directory / name
    shutil.rmtree(environment, ignore_errors=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([base, "-m", "venv", str(environment)], [*pip, *peer.pins]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        except OSError as error:
            return f"left out: its environment could not be made: {error}"
        if done.returncode:
            words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["?"]
            return f"left out: its installation failed: {words[-1]}"
    (environment / "installed").write_text("\n".join(peer.pins), "utf-8")
    return f"installed {peer.pins[0]}"


def _base_python(least: tuple[int, int]) -> str | None:
    """This Python, or one on the PATH that is new enough and runs. The shim of a version manager may exist and not run."""
    if sys.version_info >= least:
        return sys.executable
    for minor in range(least[1], least[1] + 8):
        found = shutil.which(f"python3.{minor}")
        if found is not None and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None
