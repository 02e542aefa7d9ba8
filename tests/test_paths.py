"""Both of Kaggle's mount layouts, in a copy of /kaggle/input."""

from pathlib import Path

import pytest

from aimo_solver.errors import PathNotFoundError
from aimo_solver.paths import find_gateway_package, find_model, find_problems, find_wheels

SLUG = "ai-mathematical-olympiad-progress-prize-3"
HANDLE = "danielhanchen/gpt-oss-120b/Transformers/default"


def put(path: Path, text: str = "{}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "mount",
    ["models/danielhanchen/gpt-oss-120b/transformers/default/1", "gpt-oss-120b/transformers/default/1"],
    ids=["newer", "older"],
)
@pytest.mark.parametrize("handle", [HANDLE, HANDLE + "/1", HANDLE.lower(), HANDLE.lower() + "/1"])
def test_a_model_is_found_by_its_handle(tmp_path: Path, mount: str, handle: str) -> None:
    config = put(tmp_path / mount / "config.json")
    assert find_model(handle, tmp_path) == config.parent


@pytest.mark.parametrize("mount", ["datasets/me/my-weights/model", "my-weights/model"], ids=["newer", "older"])
def test_a_model_is_found_inside_a_dataset(tmp_path: Path, mount: str) -> None:
    config = put(tmp_path / mount / "config.json")
    assert find_model("me/my-weights", tmp_path) == config.parent


def test_the_newest_version_counts_as_a_number(tmp_path: Path) -> None:
    for version in (2, 9, 10):
        put(tmp_path / f"models/me/m/transformers/base/{version}/config.json")
    assert find_model("me/m/transformers/base", tmp_path).name == "10"
    assert find_model("me/m/transformers/base/9", tmp_path).name == "9"


def test_a_checkpoint_in_a_subfolder_is_not_taken_for_the_model(tmp_path: Path) -> None:
    put(tmp_path / "models/me/m/transformers/base/1/original/config.json")
    config = put(tmp_path / "models/me/m/transformers/base/1/config.json")
    assert find_model("me/m/transformers/base", tmp_path) == config.parent


def test_a_name_can_be_a_folder_of_this_machine(tmp_path: Path) -> None:
    config = put(tmp_path / "somewhere" / "config.json")
    assert find_model(str(config.parent), tmp_path / "nothing") == config.parent


def test_a_missing_model_names_every_folder_that_was_tried(tmp_path: Path) -> None:
    with pytest.raises(PathNotFoundError) as caught:
        find_model(HANDLE, tmp_path)
    assert tmp_path / "models/danielhanchen/gpt-oss-120b/transformers/default" in caught.value.tried
    assert tmp_path / "gpt-oss-120b/transformers/default" in caught.value.tried
    assert all(str(path) in str(caught.value) for path in caught.value.tried)


@pytest.mark.parametrize("mount", [f"competitions/{SLUG}", SLUG], ids=["newer", "older"])
def test_the_competition_is_found(tmp_path: Path, mount: str) -> None:
    put(tmp_path / mount / "kaggle_evaluation/__init__.py")
    csv = put(tmp_path / mount / "test.csv")
    assert find_gateway_package(SLUG, tmp_path) == tmp_path / mount
    assert find_problems("", SLUG, tmp_path) == csv


def test_a_missing_gateway_package_names_both_layouts(tmp_path: Path) -> None:
    with pytest.raises(PathNotFoundError) as caught:
        find_gateway_package(SLUG, tmp_path)
    assert tmp_path / SLUG / "kaggle_evaluation" in caught.value.tried
    assert tmp_path / "competitions" / SLUG / "kaggle_evaluation" in caught.value.tried


def test_a_named_problem_file_is_preferred(tmp_path: Path) -> None:
    put(tmp_path / SLUG / "test.csv")
    mine = put(tmp_path / "mine.csv")
    assert find_problems(str(mine), SLUG, tmp_path) == mine
    with pytest.raises(PathNotFoundError, match=r"not_there\.csv"):
        find_problems("not_there.csv", SLUG, tmp_path)


def test_without_kaggle_the_warm_up_set_is_found_from_a_subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv = put(tmp_path / "data/warmup.csv")
    (tmp_path / "notebook").mkdir()
    monkeypatch.chdir(tmp_path / "notebook")
    assert find_problems("", SLUG, tmp_path / "no-kaggle") == csv


def test_wheels_are_found_in_every_mount(tmp_path: Path) -> None:
    places = ["aimo-wheels", "notebooks/me/aimo-wheels", "datasets/me/more/deep/er", "models/o/m/other/default/1"]
    wheels = [put(tmp_path / place / "a-1.0-py3-none-any.whl") for place in places]
    put(tmp_path / SLUG / "test.csv")
    assert set(find_wheels(tmp_path)) == {wheel.parent for wheel in wheels}
