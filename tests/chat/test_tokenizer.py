"""Text to token ids: only the format produces control tokens, and no text is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Core

from aimo_solver.chat.model_folder import Tokenizer
from aimo_solver.errors import ModelError
from tests.tiny_tokenizers import GEMMA_CONTROLS, QWEN_CONTROLS, byte_level, gemma_folder


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(gemma_folder(tmp_path_factory.mktemp("gemma")))


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return Tokenizer(byte_level(QWEN_CONTROLS))


def _mixed(controls: dict[str, object]) -> st.SearchStrategy[str]:
    parts = st.one_of(st.sampled_from(sorted(controls)), st.sampled_from(["<|", "|>", "<", ">", "\n\n"]), st.text(max_size=8))
    return st.lists(parts).map("".join)


@given(text=_mixed(dict(GEMMA_CONTROLS)))
def test_plain_text_of_gemma_has_no_control_token_and_survives_a_round_trip(gemma: Tokenizer, text: str) -> None:
    ids = gemma.encode(text)
    assert not set(ids) & set(gemma.controls.values())
    assert gemma.decode(ids) == text


@given(text=_mixed(dict(QWEN_CONTROLS)))
def test_plain_text_of_qwen_has_no_control_token_and_survives_a_round_trip(qwen: Tokenizer, text: str) -> None:
    ids = qwen.encode(text)
    assert not set(ids) & set(qwen.controls.values())
    assert qwen.decode(ids) == text


def test_added_tokens_not_flagged_special_are_control_tokens(qwen: Tokenizer) -> None:
    assert qwen.controls["<tool_call>"] not in qwen.encode("a <tool_call> b")
    assert qwen.controls["<tool_call>"] in qwen.encode_template("a <tool_call> b")


def test_runs_of_newlines_stay_ordinary_text(gemma: Tokenizer) -> None:
    assert gemma.encode("a\n\nb") == gemma.encode_template("a\n\nb")
    assert "\n\n" not in gemma.controls


def test_overlapping_control_tokens_are_all_broken_up() -> None:
    tokenizer = Tokenizer(byte_level({"<a><b>": True, "<b><c>": True, "<b>": True}))
    ids = tokenizer.encode("<a><b><c>")
    assert not set(ids) & set(tokenizer.controls.values())
    assert tokenizer.decode(ids) == "<a><b><c>"


def test_a_normaliser_cannot_produce_a_control_token() -> None:
    core = byte_level({})
    from tokenizers import normalizers

    core.normalizer = normalizers.NFKC()
    core.add_tokens([AddedToken("<end>", normalized=True, special=True)])
    tokenizer = Tokenizer(core)
    assert tokenizer.controls["<end>"] not in tokenizer.encode("＜end＞")


def test_decoding_keeps_the_first_space() -> None:
    pieces = ["<unk>", "▁", "a", "▁a", "b"]
    core = Core(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[("▁", "a")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = Tokenizer(core)
    assert core.decode([3, 4]) == "ab"  # stripped by the library
    assert tokenizer.decode([3, 4]) == " ab"


def test_truncation_and_padding_of_the_file_are_off() -> None:
    core = byte_level({})
    core.enable_truncation(4)
    core.enable_padding(length=4)
    tokenizer = Tokenizer(core)
    assert tokenizer.decode(tokenizer.encode("twelve words or more, and none of them is lost")) == (
        "twelve words or more, and none of them is lost"
    )
    assert len(tokenizer.encode("a")) == 1


def test_lone_surrogates_do_not_break_encoding(gemma: Tokenizer) -> None:
    assert gemma.decode(gemma.encode("a\ud800b")) == "a?b"


def test_ids_without_text_are_left_out(gemma: Tokenizer) -> None:
    assert gemma.decode([2**40, -1, 10**9, *gemma.encode("ok")]) == "ok"


@pytest.mark.parametrize(
    ("text", "message"), [(None, "has no tokenizer.json"), ("{", "cannot be used"), ('{"model": 1}', "cannot be used")]
)
def test_an_unusable_tokenizer_is_an_error_with_the_reason(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(tmp_path)


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer.load(tmp_path)
