"""Prompts a family of models and reads its turns, in token ids.

`turns` is the vocabulary, `families` chooses the format of a model's folder; one module per family. Whatever reads model
output takes linear time, is bounded, and never raises.

May import: nothing but the top.
"""

__all__ = [
    "families",
    "fenced",
    "gemma",
    "harmony",
    "hermes",
    "model_folder",
    "prompts",
    "salvage",
    "template",
    "tokenizer",
    "turns",
]
