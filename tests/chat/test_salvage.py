"""Code is found in malformed calls in linear time: each degenerate text here repeats a unit 100,000 times."""

from __future__ import annotations

import pytest

from aimo_solver.chat.salvage import LONGEST_PARSED, Code, bare_code, code_in_json, compiles, python_blocks

MANY = 100_000
pytestmark = pytest.mark.timeout(60)  # a reader that is not linear takes minutes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"code": "' + "\n" * MANY, None),
        ('{"code": "print(1)\n"x"' + "\n" * MANY + "x", Code('print(1)\n"x"' + "\n" * MANY + "x", "broken JSON")),
        ('{"code": "a"b"' + "}\n" * MANY, Code('a"b', "broken JSON")),
        ('{"code": "1"' + "}" * MANY, Code("1", "text after the JSON")),
        ('{"code": "1"' + ",}" * MANY, Code("1", "a comma too many")),
        ("{'code': '" + "\\d" * MANY, Code("\\d" * MANY, "broken JSON")),
        ('{"code": "' + "\\d" * MANY + '"}', Code("\\d" * MANY, "backslashes not escaped")),
        ('{"arguments":' * MANY, None),
        ('{"arguments":' * MANY + '{"code":"1"}' + "}" * MANY, Code("1", "broken JSON")),
        ("[" * MANY, None),
        ('{"x":' + "[" * MANY + '"code":"1"', Code("1", "broken JSON")),
        ("code " * MANY, None),
        ("code:" + " " * MANY, None),
        ("```json\n" + " \n" * MANY + '{"code": "1"}\n```', Code("1", "JSON inside fences")),
        ("```json\n" + "`" * MANY, None),
        ('"' * MANY, None),
    ],
    ids=range(16),
)
def test_code_in_long_broken_json(text: str, expected: Code | None) -> None:
    assert code_in_json(text) == expected


@pytest.mark.parametrize("depth", [900, 960, 980, 990, 1_000, 2_000, 20_000])
def test_objects_nested_as_deep_as_the_stack(depth: int) -> None:
    code = code_in_json('{"arguments":' * depth + '{"code":"1"}' + "}" * depth)
    assert code is not None
    assert code.text == "1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\n" * MANY, []),
        ("```python\n" + " " * MANY + "x", []),
        ("```python\n1\n```\n" * MANY, ["1\n"] * MANY),
        (" " * MANY + "```python\n1\n```", ["1\n"]),
        ("```python\n" + "``\n" * MANY + "\t```", ["``\n" * MANY]),
        ("```" + " " * MANY + "python\n1\n```" + " " * MANY, ["1\n"]),
    ],
    ids=["openings", "blanks", "blocks", "indented", "almost closed", "blanks around"],
)
def test_blocks_of_a_long_text(text: str, expected: list[str]) -> None:
    assert python_blocks(text) == expected


@pytest.mark.parametrize("space", ["\n", " ", "\t", " \n"])
def test_a_fence_around_long_white_space(space: str) -> None:
    assert bare_code("```python\n" + space * MANY + "1") == Code(space * MANY + "1", "code inside fences")
    assert bare_code("```python\n" + space * MANY + "```") == Code("```python\n" + space * MANY + "```")
    assert bare_code(space * MANY) is None


def test_backquotes_alone_are_not_changed() -> None:
    assert bare_code("`" * MANY) == Code("`" * MANY)


def test_tildes_in_python_are_not_a_fence() -> None:
    assert bare_code("~~~python\nprint(1)") == Code("~~~python\nprint(1)")
    assert bare_code("~~~\nprint(1)\n~~~") == Code("print(1)", "code inside fences")


@pytest.mark.parametrize(
    "unit", ["(", "[", "-", "not ", "1+", "a.", "x if x else ", "lambda:", "x=1\n", "if x:\n", "\0", "\ud800"]
)
def test_compiles_never_raises(unit: str) -> None:
    for count in (1, 90, 190, 1_000, MANY):
        assert compiles(unit * count) in (True, False)


def test_long_code_is_not_parsed() -> None:
    line = "x=1\n"
    assert compiles(line * (LONGEST_PARSED // len(line)))
    assert not compiles(line * (LONGEST_PARSED // len(line)) + "\n")


def test_code_too_long_to_be_parsed_keeps_its_escapes() -> None:
    code = 'print("a\\nb")\n' * 1_000
    assert code_in_json('{"code": "' + code + '"}') == Code(code, "broken JSON")
