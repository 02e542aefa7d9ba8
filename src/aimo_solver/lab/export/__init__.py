"""Writes runs in the formats of other tools: parquet, Inspect logs, Weights & Biases. Never in the notebook.

May import: log, lab.
"""

__all__ = ["inspect_log", "tables", "wandb_run"]
