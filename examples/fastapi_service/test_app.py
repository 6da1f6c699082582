"""How to test a FastAPI service: by FastAPI's client, on a database of the test's own.

pip install pytest httpx2
pytest examples/fastapi_service/test_app.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from examples.fastapi_service.app import app
from rush_async import RushConfig
from rush_async.extras.fastapi import rush_config


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A client of the service, on an embedded server that ends with the test."""
    app.dependency_overrides[rush_config] = lambda: RushConfig(data_dir=tmp_path)
    with TestClient(app) as client:
        yield client
    del app.dependency_overrides[rush_config]


def test_a_point_is_evaluated(client: TestClient) -> None:
    answer = client.post("/evaluate", json={"xs": {"x1": 3.14, "x2": 2.27}})
    assert answer.json()["ys"]["y"] == pytest.approx(0.398, abs=0.001)
    assert client.get("/health").json() == {"evaluated": 1}


def test_a_run_spends_its_budget(client: TestClient) -> None:
    run = client.post(
        "/runs", json={"loop": "random-search", "evals": 10, "n_workers": 4}
    ).json()
    # The test client returns a stream when it has ended, with the run.
    assert "event: end" in client.get(f"/runs/{run['id']}/events").text
    (ended,) = client.get("/runs").json()
    assert (ended["id"], ended["counts"]["finished"], ended["ended"]["why"]) == (
        run["id"],
        10,
        "budget",
    )


def test_every_request_needs_the_token_and_a_browser_gets_a_cookie_for_it(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "a-secret")
    header = {"Authorization": "Bearer a-secret"}
    run = client.post(
        "/runs", json={"loop": "random-search", "evals": 1}, headers=header
    ).json()["id"]
    for path in ("/runs", f"/runs/{run}", f"/runs/{run}/events"):
        assert client.get(path).status_code == 401
        assert (
            client.get(path, headers={"Authorization": "Bearer wrong"}).status_code
            == 401
        )
    assert client.post("/session").status_code == 401

    assert "HttpOnly" in client.post("/session", headers=header).headers["set-cookie"]
    # An EventSource asks with the cookie, and without a header.
    stream = client.get(f"/runs/{run}/events")
    assert stream.status_code == 200
    assert "event: end" in stream.text
