"""The part of a client that writes its network into a file, and takes one in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, TypeVar

import anyio.to_thread

from rush_async.client.arguments import Schema
from rush_async.client.export.contents import Contents, ExportedNetwork
from rush_async.client.export.importing import ImportingNetwork, import_into
from rush_async.client.export.reading import Archive
from rush_async.client.export.writing import write
from rush_async.client.session import Session, Shared
from rush_async.errors import NetworkStateError
from rush_async.model import TaskState
from rush_async.store.task_reads import View
from rush_async.supervisor import run_to_completion

__all__ = ["Exporting"]


class PortableNetwork(Shared, ExportedNetwork, ImportingNetwork, Protocol):
    """The network of the client."""


N = TypeVar("N", bound=PortableNetwork)


class Exporting(Session[N]):
    """A client that exports and imports."""

    _schema: Schema | None

    async def export(self, path: str | os.PathLike[str]) -> Path:
        """Writes the network into one zip file, which `Archive.open` reads without a server and `import_archive` takes in.

        The tasks of all states are those of one moment. Attributes, claims and the seed are those of one moment soon after it.
        Rankings, stop rules, attributes of tasks, points, reports and the worker log are read one after another behind that.
        Nothing is changed in the network, whose workers may continue meanwhile. The event loop stays free: the file is written
        in a thread, in parts, so that the tasks need not fit into memory. What cannot be decoded is left out, with a warning as
        for any other read.

        The file takes its place when it is complete, in one step. Until then an export that was there before stays, and one
        that is killed leaves only a hidden file (`.NAME.*.partial`), which the next export to the same path removes.

        Args:
            path: the file, by convention with the suffix `.zip`.

        Returns:
            The path.

        Raises:
            NetworkStateError: the network does not exist: nothing was ever written to it, or it was reset.
            OSError: the file cannot be written.
        """
        network, path = self._net, Path(path)
        while True:
            with ExitStack() as stack:
                contents = Contents(path.absolute().parent, stack)
                n_finished = (await network.tasks.read_position()).counts.finished
                view = await self._read_view(n_finished, contents.records)
                if not view.epoch:
                    raise NetworkStateError(
                        f"network {self._network_id!r} does not exist, so there is nothing to export: nothing was ever written "
                        "to it, or it was reset"
                    )
                if not await contents.read(network, n_finished, view):
                    continue
                facts = await anyio.to_thread.run_sync(contents.network, self._network_id, _version(), self._schema)
                steps = write(path.absolute(), facts, contents.tables())
                stack.callback(steps.close)
                while await run_to_completion(anyio.to_thread.run_sync(_take, steps)):
                    pass  # the caller may be cancelled between two steps
                return path

    async def import_archive(self, archive: Archive | str | os.PathLike[str]) -> list[str]:
        """Takes an export in, into a new network or an existing one.

        What is there stays as it is, so the same export again changes nothing. Each part is one step of the server, and an
        import that was interrupted is completed by the next.

        Tasks keep their keys, values, times, attempts and workers. Those whose key the network has are left out. A task that
        ran when the network was exported has lost its worker: with retries left it is queued again, before all others, else
        it fails with kind `lost`. Imported tasks count in no stop rule; one that is queued counts once it has ended here, one
        that failed once it is tried again. They count for a budget, as all tasks that the network holds.

        A network that never had a task takes over all else too: the seed, indices, attributes, claims, rankings, points,
        reports and the worker log. Stop rules, a stop and workers are not imported; `Archive.network` has them. A network with
        tasks of its own gets the tasks, their attributes and their points: the tasks get new indices, and what proposals were
        based on is left out.

        Args:
            archive: an export, or the path of its file.

        Returns:
            The keys of the tasks that were added.

        Raises:
            FileNotFoundError: there is no such file.
            DecodeError: it is no export.
            NetworkStateError: the network was given another seed, or was reset meanwhile.
            ServerFullError: the server is at its `maxmemory`; the parts before stay, and another import adds the rest.
        """
        network = self._net
        opened = archive if isinstance(archive, Archive) else await anyio.to_thread.run_sync(Archive.open, archive)
        return await import_into(network, opened)

    async def _read_view(self, n_finished: int, many: Mapping[TaskState, MutableMapping[bytes, bytes]]) -> View:
        """Reads all tasks as they are at one moment, of finished ones those behind `n_finished`; into `many` if they are."""
        raise NotImplementedError


def _take(steps: Iterator[None]) -> bool:
    """Takes a step; returns whether another may follow."""
    return next(steps, True) is None


def _version() -> str:
    try:
        return version("rush-async")
    except PackageNotFoundError:
        return "unknown"
