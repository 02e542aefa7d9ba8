"""Chat formats: how a family of models is prompted and how its turns are read, in token ids.

`turns` defines the vocabulary, `families` picks the format for a model folder, and each family has a module of its own.
Reading model output takes linear time and never raises.

May import: nothing but the top-level modules.
"""

__all__ = ["families", "markup", "model_folder", "prompts", "salvage", "turns", "variants"]
