"""Writes runs in the formats of other tools: parquet, Inspect logs, Weights & Biases, training data. Never in the notebook.

May import: log, lab.
"""

__all__ = ["inspect_log", "tables", "training", "training_files", "wandb_run"]
