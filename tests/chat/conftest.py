"""The example of every chat family, built once."""

from __future__ import annotations

import pytest

from tests.chat_families import NAMES, Family, family


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return {name: family(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(scope="session")
def harmony(families: dict[str, Family]) -> Family:
    return families["harmony"]


@pytest.fixture(scope="session")
def gemma(families: dict[str, Family]) -> Family:
    return families["gemma"]


@pytest.fixture(scope="session")
def hermes(families: dict[str, Family]) -> Family:
    return families["hermes"]


@pytest.fixture(scope="session")
def fenced(families: dict[str, Family]) -> Family:
    return families["fenced"]
