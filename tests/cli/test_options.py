"""The options of the program `rush-async`."""

from __future__ import annotations

import pytest

from rush_async.cli.options import parse


def test_options_have_values_of_their_types() -> None:
    words = "worker net a:b -n 3 --drain 1.5 --max-time 3600 --max-tasks 10 --idle-timeout 2.5 "
    words += "--log-level my.logger=debug --log-level other=INFO --no-tls-check-hostname -vv"
    options = parse([*words.split(), "--args", '{"x": [1, null]}'])
    assert (options.network, options.loop, options.start, options.workers, options.drain) == ("net", "a:b", None, 3, 1.5)
    assert options.args == {"x": [1, None]}
    assert (options.max_time, options.max_tasks, options.idle_timeout) == (3600.0, 10, 2.5)
    assert options.log_level == [("my.logger", "DEBUG"), ("other", "INFO")]
    assert (options.tls_check_hostname, options.verbose) == (False, 2)


def test_options_that_are_not_given_are_none() -> None:
    options = parse(["worker", "--start", "1", "net"])
    assert (options.loop, options.start) == (None, "1")
    assert (options.workers, options.args, options.log_level, options.heartbeat_period) == (None, None, None, None)
    assert (options.max_time, options.max_tasks, options.idle_timeout) == (None, None, None)
    assert (options.drain, options.tls_check_hostname, options.allow_pickle) == (30.0, True, False)


def test_options_may_stand_between_network_and_loop() -> None:
    assert parse(["worker", "net", "-n", "2", "a:b"]).loop == "a:b"


def test_a_network_that_begins_with_a_dash_follows_two_dashes() -> None:
    assert parse(["worker", "--start", "1", "--", "-net"]).network == "-net"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "required: COMMAND"),
        ("worker", "required: NETWORK"),
        ("worker net", "name the loop by MODULE:FUNCTION, or what was prepared by --start ID"),
        ("worker net a:b --start 1", "one of the two"),
        ("worker net nonsense", "not of the form module:function"),
        ("worker net ./good.py:loop", "write good:loop"),
        ("worker net --start 1 extra:loop", "one of the two"),
        ("worker net a:b --url redis://h --data-dir d", "by --url, or an embedded one by --data-dir: one of the two"),
        ("worker net a:b c:d", "unrecognized arguments: c:d"),
        ("worker net a:b --heartbeat-expire soon", "not a number of seconds"),
        ("worker {} a:b", "network_id '{}' contains '{'"),
        ("worker net a:b -n 0", "not a number, 1 or more"),
        ("worker net a:b --drain nan", "not a number of seconds"),
        ("worker net a:b --max-time 0", "'0' is not a number of seconds above 0"),
        ("worker net a:b --idle-timeout inf", "'inf' is not a number of seconds"),
        ("worker net a:b --max-tasks many", "'many' is not a number, 1 or more"),
        ("worker net a:b --args [1]", "a JSON object is needed"),
        ("worker net a:b --args {", "no JSON"),
        ("worker net a:b --log-level x=LOUD", "my.logger=DEBUG"),
        ("worker net -v a:b --ur redis://:hunter2@h", "redis://:***@h"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_reason(words: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words.split())
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert complaint in " ".join(errors.split())
    assert "hunter2" not in errors
