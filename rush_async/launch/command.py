"""The command that starts workers on any machine, and the start that the database keeps for it."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rush_async.client.arguments import Schema
from rush_async.config import RushConfig, redact_url, without_password
from rush_async.launch.job import Job, digest_of, packed_schema
from rush_async.launch.packed_loop import PackedLoop
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.names import worker_name

__all__ = ["Command", "prepare_command"]

logger = logging.getLogger(__name__)

_TLS = {"tls_ca_file": "--tls-ca-file", "tls_cert_file": "--tls-cert-file", "tls_key_file": "--tls-key-file"}


@dataclass(frozen=True, slots=True)
class Command:
    """A command that starts workers.

    Attributes:
        start_id: the id under which the network keeps `start`.
        start: the packed job that the program reads there.
        line: the command, for a POSIX shell.
    """

    start_id: str
    start: bytes
    line: str


def prepare_command(
    loop: WorkerLoop,
    network_id: str,
    config: RushConfig,
    *,
    n_workers: int = 1,
    log_levels: Mapping[str, str | int] | None = None,
    schema: Schema | None = None,
    with_password: bool = False,
    allow_pickle: bool = False,
    data_dir: Path | None = None,
    is_private: bool = False,
) -> Command:
    """Returns the command that starts workers on other machines, and its start. Logs the command without its password.

    Args:
        loop: the loop with its arguments.
        network_id: the network to work in.
        config: the server, and the settings that the workers get.
        n_workers: how many workers the command starts, in one process.
        log_levels: the loggers whose records the network keeps, with their levels.
        schema: columns that frames of the workers always have, with their dtypes.
        with_password: whether the command sets `RUSH_URL` with the password; otherwise the environment must contain it.
        allow_pickle: whether loop and arguments are sent as a pickle; the command then has `--allow-pickle`.
        data_dir: the data directory of an embedded server, which the command names instead of a URL.
        is_private: whether the server is an embedded one without a data directory.

    Raises:
        TypeError: the loop has no name to import it by.
        EncodeError: an argument cannot be stored, or they are too large.
    """
    if n_workers < 1:
        raise ValueError(f"n_workers must be at least 1, not {n_workers}")
    assert config.url is not None
    pack = PackedLoop.pickled if allow_pickle else PackedLoop.named
    names = [worker_name() for _ in range(n_workers)]  # only their number counts: each run of the command draws new names
    start = Job(network_id, config, names, pack(loop, network_id, config), log_levels, packed_schema(schema)).to_start()
    start_id = digest_of(start)
    with_password = with_password and data_dir is None
    words = ["--start", start_id]
    if data_dir is not None:
        words += ["--data-dir", str(data_dir)]
    elif not with_password:
        words += ["--url", without_password(config.url)]
    words = _words(network_id, words, config, n_workers, allow_pickle)
    shown = _line(words, redact_url(config.url) if with_password else None)
    logger.info("this command starts workers of network %r: %s", network_id, shown)
    if not with_password and without_password(config.url) != config.url:
        logger.info("the command does not contain the password: set RUSH_PASSWORD or RUSH_URL where you run it")
    if is_private or data_dir is not None:
        logger.warning(
            "the command works on this machine only%s, because the server is an embedded one. For workers elsewhere, give Rush "
            "the URL of a server that they reach",
            ", and only while this process or another client of the server lives" if is_private else "",
        )
    return Command(start_id, start, _line(words, config.url if with_password else None))


def _words(network_id: str, words: list[str], config: RushConfig, n_workers: int, allow_pickle: bool) -> list[str]:
    for field, option in _TLS.items():
        if (value := getattr(config, field)) is not None:
            words += [option, os.fspath(value)]
    if not config.tls_check_hostname:
        words.append("--no-tls-check-hostname")
    words += ["-n", str(n_workers)]
    if allow_pickle:
        words.append("--allow-pickle")
    # A network id that begins with a dash would be taken for an option.
    words = [*words, "--", network_id] if network_id.startswith("-") else [network_id, *words]
    return ["rush-async", "worker", *words]


def _line(words: list[str], url: str | None) -> str:
    environment = "" if url is None else f"RUSH_URL={shlex.quote(url)} "
    return environment + " ".join(shlex.quote(word) for word in words)
