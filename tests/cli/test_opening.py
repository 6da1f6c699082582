"""The network that the options of a command name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rush_async import Rush, RushConfig
from rush_async.cli.exit_codes import REFUSED, CommandError
from rush_async.cli.opening import existing, open_client, open_network
from rush_async.cli.options import Parser, add_network, add_server


async def test_a_network_that_does_not_exist_is_refused_unless_it_may_be_new(rush: Rush) -> None:
    assert rush.config.url is not None
    parser = Parser()
    add_network(parser)
    add_server(parser)
    options = parser.parse_args([rush.network_id, "--url", rush.config.url])
    for opened in (open_client(options), open_network(options)):
        with pytest.raises(
            CommandError, match=f"network '{rush.network_id}' does not exist on .* `rush-async networks`"
        ) as error:
            async with opened:
                pass
        assert error.value.code == REFUSED
    async with open_client(options, must_exist=False) as client:
        await client.push_tasks([{"x": 1}])
    options.network += "s"
    for opened in (open_client(options), open_network(options)):
        with pytest.raises(
            CommandError, match=f"network '{rush.network_id}s' does not exist on .*: did you mean '{rush.network_id}'"
        ):
            async with opened:
                pass
    options.network = rush.network_id
    async with open_client(options) as client, open_network(options) as network:
        assert (await client.counts()).queued == network.position.counts.queued == 1


def test_a_data_directory_that_does_not_exist_is_not_created(directory: Path) -> None:
    assert existing(config := RushConfig(data_dir=directory)) is config
    with pytest.raises(CommandError, match=r"there is no data directory .*/no: check --data-dir") as error:
        existing(RushConfig(data_dir=directory / "no"))
    assert error.value.code == REFUSED
