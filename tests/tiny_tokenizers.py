"""Writes model folders with small tokenizers that have the shape and the control-token ids of the real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = (
    "def solve(n): return sum(i * i for i in range(n)) % 1000\nprint(solve(10))\n",
    "for x in range(1, 100):\n    if x % 7 == 3:\n        print('found', x)\n",
    "The final answer is therefore the number of pairs, so we compute it with Python.",
    "import sympy\nfrom math import gcd, comb\nprint(sympy.factorint(2025))\n",
    "Let f be a function from the integers to the integers such that f(x + y) = f(x) + f(y).",
    "call:python{code: value response:python thought user model system analysis commentary final",
    '{"name": "python", "arguments": {"code": "print(1)"}}',
)

GEMMA_CONTROLS = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48, "<tool_call|>": 49,
    "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52, "<|think|>": 98, "<|channel>": 100, "<channel|>": 101,
    "<|turn>": 105, "<turn|>": 106,
}  # fmt: skip


def gemma_folder(path: Path, template: str = "") -> Path:
    """Writes a folder of Gemma's shape: characters with byte fallback, spaces as ▁, runs of newlines as added tokens."""
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=[chr(n) for n in range(33, 127)], show_progress=False)
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS, trainer)
    learned = json.loads(trained.to_str())["model"]
    names = {number: name for name, number in GEMMA_CONTROLS.items()}
    pieces = [names.get(number, f"<unused{number}>") for number in range(107)]
    pieces += ["\n", "\n\n", "\n\n\n"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [piece for piece in learned["vocab"] if piece not in pieces]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(
        models.BPE(
            vocab=vocab, merges=[tuple(m) for m in learned["merges"]], byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in GEMMA_CONTROLS])
    core.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("\n\n\n", normalized=False)])
    return _write(path, core, {"model_type": "gemma4", "eos_token_id": [1, 106, 50]}, template, bos="<bos>", eos="<eos>")


def byte_level(controls: dict[str, bool], vocab_size: int = 500) -> Tokenizer:
    """Returns a byte-level BPE tokenizer; `controls` maps each added token to whether it is flagged special."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False))
    for text, special in controls.items():
        core.add_tokens([AddedToken(text, special=special, normalized=False)])
    return core


QWEN_CONTROLS = {
    "<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<tool_call>": False, "</tool_call>": False,
    "<tool_response>": False, "</tool_response>": False, "<think>": False, "</think>": False,
}  # fmt: skip

CHATML_TEMPLATE = """\
{%- set first = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools or first %}
{{- '<|im_start|>system\\n' + first }}
{%- if tools %}
{{- '\\n\\nTools: <tools>' + tools|map('tojson')|join('\\n') + '</tools> Call: <tool_call>{...}</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
{%- if m.role in ('user', 'assistant') %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

THINKING_TEMPLATE = CHATML_TEMPLATE.replace("start|>assistant\\n'", "start|>assistant\\n<think>\\n'")

R1_CONTROLS = {"<|begin|>": True, "<|end|>": True, "<|User|>": False, "<|Assistant|>": False, "<think>": False, "</think>": False}

R1_TEMPLATE = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{- raise_exception('no system role here') }}
{%- elif m.role == 'user' %}{{- '<|User|>' + m.content }}
{%- elif m.role == 'assistant' %}{{- '<|Assistant|>' + m.content + eos_token }}
{%- else %}{{- raise_exception('unknown role') }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}
"""


def hermes_folder(path: Path, template: str = CHATML_TEMPLATE) -> Path:
    """Writes a folder of Qwen's shape: byte-level, with the tags of calls and thoughts as tokens not flagged special."""
    core = byte_level(QWEN_CONTROLS)
    config = {"model_type": "qwen3", "eos_token_id": core.token_to_id("<|im_end|>")}
    return _write(path, core, config, template, bos="", eos="<|im_end|>")


def fenced_folder(path: Path, template: str = R1_TEMPLATE) -> Path:
    """Writes a folder of DeepSeek-R1's shape: no tool role, no system role, turns begin inside the thoughts."""
    core = byte_level(R1_CONTROLS)
    config = {"model_type": "qwen2", "eos_token_id": core.token_to_id("<|end|>")}
    return _write(path, core, config, template, bos="<|begin|>", eos="<|end|>")


def harmony_folder(path: Path) -> Path:
    """Writes a folder like gpt-oss's; only its model type is read."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}), encoding="utf-8")
    return path


def _write(path: Path, core: Tokenizer, config: Mapping[str, object], template: str, *, bos: str, eos: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    core.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    names = {"bos_token": bos, "eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    if template:
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    return path
