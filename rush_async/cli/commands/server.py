"""`rush-async server`: the embedded server in the foreground, for programs of this machine and, with a port, of others."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from rush_async.cli.exit_codes import DONE, FAILED, REFUSED, CommandError
from rush_async.config import RushConfig, as_path, with_settings_of_environment
from rush_async.embedded.directories import DataDirectory
from rush_async.embedded.server import ServerLease, acquire
from rush_async.embedded.start import Listener

__all__ = ["add_arguments", "run"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ENDS = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Runs the embedded server in the foreground until SIGTERM or SIGINT (Ctrl-C), and keeps its data in a directory.\n"
        "Programs of this machine reach it by that directory. With a port those of other machines do, by its password."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async server --data-dir results\n"
        "  RUSH_PASSWORD=... rush-async server --data-dir results --port 6379\n"
        "  rush-async server --data-dir results --port 6379 --bind 10.0.0.5 --password-file password.txt\n"
        "\n"
        "The port has no TLS: use it in a network that you trust. Exit codes: 0 ended by a signal, 1 the server died,\n"
        "2 wrong usage, 69 it did not start, or another server has the directory, 78 the password is missing."
    )
    data_dir = os.environ.get("RUSH_DATA_DIR") or None
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        default=data_dir,
        required=data_dir is None,
        help="where it keeps its data; by default RUSH_DATA_DIR of the environment",
    )
    parser.add_argument("--port", metavar="N", type=_port, help="a TCP port; the password is RUSH_PASSWORD of the environment")
    parser.add_argument("--password-file", metavar="FILE", help="a file with the password, instead of RUSH_PASSWORD")
    parser.add_argument(
        "--bind",
        metavar="ADDRESS",
        action="append",
        help="an address of this machine to listen on, such as 0.0.0.0 for all; may be given several times (default: loopback)",
    )
    parser.add_argument(
        "--appendfsync",
        choices=("always", "everysec", "no"),
        help="when a change is on the disk: before it is answered, a second later (default), or when the system writes it",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the server until a signal ends it, and returns the exit code."""
    if options.port is None and (options.bind or options.password_file):
        options.parser.error("--bind and --password-file are for a --port")
    data_dir = as_path(options.data_dir)
    listener = None if options.port is None else _listener(options)
    # From here on the signals wait, also while the server starts.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDS, signal.SIGCHLD))
    appendfsync = options.appendfsync or with_settings_of_environment(RushConfig()).appendfsync
    lease = acquire(data_dir, appendfsync=appendfsync, listener=listener, joins=False)
    directory = DataDirectory(data_dir)
    try:
        _tell(lease, listener)
        while (number := signal.sigwait((*_ENDS, signal.SIGCHLD))) not in _ENDS:
            if not directory.is_in_use():
                raise CommandError(f"the server has died: the end of {directory.log} may say why", FAILED)
    finally:
        lease.release()
    more = "; other programs still use it, and it ends with the last of them" if directory.is_in_use() else ""
    print(f"ended by {signal.Signals(number).name}; the data are in {data_dir}{more}", file=sys.stderr)
    return DONE


def _listener(options: argparse.Namespace) -> Listener:
    password = os.environ.get("RUSH_PASSWORD", "")
    if options.password_file is not None:
        try:
            password = Path(options.password_file).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"the password cannot be read: {error}", REFUSED) from None
    if not password:
        raise CommandError(
            "a port needs a password, which every client has to know: set RUSH_PASSWORD in the environment, or name a file by "
            "--password-file",
            REFUSED,
        )
    if far := [address for address in options.bind or () if address not in _LOOPBACK]:
        print(
            f"rush-async server: passwords and data travel without TLS to {', '.join(far)}: use it in a network that you trust",
            file=sys.stderr,
        )
    return Listener(options.port, password, *([options.bind] if options.bind else []))


def _tell(lease: ServerLease, listener: Listener | None) -> None:
    print(f"server process {lease.pid}, data in {lease.data_dir}")
    print(f"programs of this machine: --data-dir {lease.data_dir}, or RUSH_DATA_DIR={lease.data_dir}")
    if listener is not None:
        hosts = [address for address in listener.addresses if not address.startswith("-")]
        for host in hosts:
            host = os.uname().nodename if host in ("0.0.0.0", "::", "*") else f"[{host}]" if ":" in host else host
            print(f"others: RUSH_URL=redis://{host}:{listener.port}, and the password in RUSH_PASSWORD")
    sys.stdout.flush()


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, 1 to 65535")
    return int(text)
