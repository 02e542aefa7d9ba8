"""The versions of the server, and those recorded beside its wheels."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aimo_solver.server.machine import Versions, difference, recorded_versions, running_versions
from tests.conftest import H100

RECORDED = Versions(python="3.12.13", vllm="0.26.0", torch="2.11.0", cuda="13.0", driver="580.105.08")


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks" / "me" / "aimo-wheels"
    folder.mkdir(parents=True)
    (folder / "a-1.0-py3-none-any.whl").touch()
    return folder


def test_recorded_versions_are_found_beside_the_wheels(mount: Path, tmp_path: Path) -> None:
    assert recorded_versions(tmp_path) is None
    (mount / "versions.json").write_text(json.dumps(asdict(RECORDED) | {"more": 1}))
    assert recorded_versions(tmp_path) == RECORDED


def test_of_two_outputs_the_newer_vllm_is_the_recorded_one(mount: Path, tmp_path: Path) -> None:
    for folder, vllm in (("a", "0.9.2"), ("b", "0.26.0"), ("c", "0.17.0")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vllm.whl").touch()
        (tmp_path / folder / "versions.json").write_text(json.dumps(asdict(RECORDED) | {"vllm": vllm}))
    found = recorded_versions(tmp_path)
    assert found is not None
    assert found.vllm == "0.26.0"


@pytest.mark.parametrize("text", ["", "[]", "{", "\udc80"])
def test_recorded_versions_that_cannot_be_read_are_none(text: str, mount: Path, tmp_path: Path) -> None:
    (mount / "versions.json").write_text(text, errors="surrogateescape")
    assert recorded_versions(tmp_path) is None


def test_a_difference_is_one_line() -> None:
    running = replace(RECORDED, python="3.12.12", driver="575.1")
    assert difference(RECORDED, running) == (
        "python 3.12.12 here, 3.12.13 where the wheels were tried; driver 575.1 here, 580.105.08 where the wheels were tried"
    )
    assert difference(RECORDED, RECORDED) is None


def test_what_is_unknown_is_not_compared() -> None:
    assert difference(replace(RECORDED, driver=""), RECORDED) is None
    assert difference(RECORDED, replace(RECORDED, driver="")) is None
    assert difference(None, RECORDED) is None


def test_running_versions_are_those_of_this_python_and_gpu() -> None:
    running = running_versions(sys.path, (H100,))
    assert (running.python, running.driver) == (platform.python_version(), H100.driver)
    assert "+" not in running.torch
