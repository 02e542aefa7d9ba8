"""Endpoints: which of the served models is used."""

from __future__ import annotations

import json

import pytest

from aimo_solver.server.completions import ServedModel
from aimo_solver.server.process import free_port
from aimo_solver.solve.endpoint import Endpoint, EndpointError, find_served_model
from tests.conftest import Served
from tests.http_vllm import HttpVllm


async def found(served_model: str | None, *names: str) -> ServedModel:
    """Asks a server with models of these names for one of them."""
    http = HttpVllm()
    http.models = json.dumps({"data": [{"id": name, "max_model_len": 4_096, "root": "/models/m"} for name in names]})
    async with http.engine() as engine:
        return await find_served_model(Endpoint(engine.base_url, served_model))


async def test_the_only_model_needs_no_name() -> None:
    assert await found(None, "a") == ServedModel("a", 4_096, "/models/m")


async def test_a_model_is_chosen_by_its_name() -> None:
    assert (await found("b", "a", "b")).name == "b"


@pytest.mark.parametrize(
    ("served_model", "names", "problem"),
    [
        (None, ["a", "b"], "serves a, b; choose one with --served-model"),
        (None, [], "serves no model"),
        ("c", ["a", "b"], "does not serve c; it serves a, b"),
    ],
)
async def test_a_model_that_cannot_be_chosen_is_an_error(served_model: str | None, names: list[str], problem: str) -> None:
    with pytest.raises(EndpointError, match=problem):
        await found(served_model, *names)


async def test_a_port_without_a_server_is_reported_in_one_line() -> None:
    with pytest.raises(EndpointError, match="does not answer") as error:
        await find_served_model(Endpoint(f"http://127.0.0.1:{free_port()}"))
    assert "\n" not in str(error.value)


@pytest.mark.vllm
async def test_the_model_of_a_vllm_server_is_found(vllm: Served) -> None:
    assert (await find_served_model(Endpoint(vllm.url))).name == vllm.name
