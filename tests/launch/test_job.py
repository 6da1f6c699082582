"""The job: its forms for pipes, pools and the database, and the reports that come back."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest

from rush_async import DecodeError, Failure, RushConfig, RushConfigError, WorkerExit
from rush_async.frames.schema import unpack_schema
from rush_async.launch.job import Job, digest_of, frame, pack_report, packed_schema, take_frames, unpack_report
from rush_async.launch.packed_loop import PackedLoop
from rush_async.store.codec import encode
from rush_async.worker.loop import WorkerLoop, bind_loop
from tests.launch.loops_of_tests import note_arguments, serve

CONFIG = RushConfig("redis://server:6379/0")


def job_of(loop: Any, config: RushConfig = CONFIG, *, allow_pickle: bool = False, **args: Any) -> Job:
    pack = PackedLoop.pickled if allow_pickle else PackedLoop.named
    return Job("net", config, ["a", "b", "c"], pack(bind_loop(loop, args, {}), "net", config), {"my.logger": "DEBUG"})


def read(start: bytes, config: RushConfig = CONFIG, *, allow_pickle: bool = False) -> Job:
    return Job.of_start(start, digest_of(start), "net", config, allow_pickle=allow_pickle)


# the pickle


def test_a_job_is_read_from_a_pipe_as_it_was_written() -> None:
    job = job_of(note_arguments, allow_pickle=True, x=5)
    assert Job.of_pickle(job.to_pickle()) == job


# the start


def test_a_start_has_all_of_the_job_except_network_server_and_names() -> None:
    job = read(job_of(note_arguments, x=5).to_start(), RushConfig("redis://elsewhere"))
    assert (job.network_id, job.config.url, job.log_levels) == ("net", "redis://elsewhere", {"my.logger": "DEBUG"})
    assert job.loop.load() == WorkerLoop(note_arguments, {"x": 5})
    assert len(set(job.worker_ids)) == 3
    assert not {"a", "b", "c"} & set(job.worker_ids)


@pytest.mark.parametrize("log_levels", [None, {}])
def test_a_start_tells_no_levels_from_the_default(log_levels: dict[str, str | int] | None) -> None:
    assert read(replace(job_of(serve), log_levels=log_levels).to_start()).log_levels == log_levels


def test_a_job_keeps_its_schema_in_both_forms() -> None:
    schema = {"loss": pl.Float32, "tags": pl.List(pl.String)}
    job = replace(job_of(serve), schema=packed_schema(schema))
    for each in (Job.of_pickle(job.to_pickle()), read(job.to_start())):
        assert each.schema is not None
        assert unpack_schema(each.schema) == pl.Schema({"loss": pl.Float32(), "tags": pl.List(pl.String())})
    assert packed_schema({}) is packed_schema(None) is None


def test_each_run_of_a_start_draws_new_names() -> None:
    start = job_of(serve).to_start()
    assert not set(read(start).worker_ids) & set(read(start).worker_ids)


def test_a_start_that_was_replaced_in_the_database_is_refused() -> None:
    start, other = job_of(serve).to_start(), job_of(note_arguments).to_start()
    with pytest.raises(DecodeError, match="was altered in the database"):
        Job.of_start(other, digest_of(start), "net", CONFIG, allow_pickle=True)


def test_a_start_of_another_version_is_refused() -> None:
    settings = {"n_workers": 1, "log_levels": None, "settings": {"no_such_setting": 1}, "loop": "a:b"}
    malformed: list[Any] = [{"loop": "a:b"}, [1], {**settings, "args": {"what": 1}}, {**settings, "settings": 5}]
    for start in malformed:
        with pytest.raises(DecodeError, match=r"malformed: install the manager's version"):
            read(encode(start, "start"))
    with pytest.raises(RushConfigError, match="unknown setting 'no_such_setting'"):
        payload = {"what": "", "size": 0, "inline": b"\x80", "path": None, "sha256": None}
        read(encode({**settings, "args": payload}, "start"))


def test_the_start_has_the_settings_but_no_secret() -> None:
    config = RushConfig(f"redis://ann:{quote('secret')}@h", heartbeat_expire=50, retry_deadline=7, tls_ca_file="/ca")
    start = job_of(serve, config).to_start()
    assert read(start).config == replace(CONFIG, heartbeat_expire=50, retry_deadline=7)
    assert b"secret" not in start


def test_a_pickle_in_a_start_is_refused_unless_both_sides_allow_it() -> None:
    start = job_of(serve, allow_pickle=True).to_start()
    with pytest.raises(RushConfigError, match=r"contains a pickle.*--allow-pickle"):
        read(start)
    assert read(start, allow_pickle=True).loop.load() == WorkerLoop(serve, {})


def test_a_pickle_of_another_python_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    start = job_of(serve, allow_pickle=True).to_start()
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    with pytest.raises(RushConfigError, match=r"pickle of Python 3\.\d+, and this is Python 3\.99"):
        read(start, allow_pickle=True)


# reports


def test_reports_are_read_from_a_pipe_as_they_were_written() -> None:
    end = WorkerExit("a", "failed", Failure.of(ValueError("too large")))
    assert unpack_report(pack_report(end)) == end
    assert unpack_report(pack_report("a")) == "a"


def test_frames_are_taken_from_a_buffer_once_they_are_complete() -> None:
    sent = frame(b"first") + frame(b"") + frame(b"x" * 70_000)
    buffer, taken = bytearray(), list[bytes]()
    for first in range(0, len(sent), 1_000):
        buffer += sent[first : first + 1_000]
        taken += take_frames(buffer)
    assert taken == [b"first", b"", b"x" * 70_000]
    assert not buffer
