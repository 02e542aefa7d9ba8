"""Whether a model can be divided over the GPUs that the options ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aimo_solver.errors import ConfigError
from aimo_solver.options import ServerConfig

_MOST = 64  # GPUs of the divisors that a message names


def check_sharding(text: Mapping[str, Any], server: ServerConfig, tensor_parallel: int, gpus: int) -> None:
    """Checks the number of GPUs, and that heads and experts divide among them, as vLLM requires.

    Key-value heads may also be copied to several GPUs each. With expert parallelism (`--enable-expert-parallel` among
    `server.extra_args`) whole experts are spread over all GPUs; otherwise each GPU has a part of every expert.

    Args:
        text: config.json of the language model.
        gpus: of this machine; 0 if it has none.

    Raises:
        ConfigError: they do not; the message has the numbers that would fit.
    """
    copies = server.data_parallel
    if gpus and tensor_parallel * copies > gpus:
        problem = f"{tensor_parallel} GPUs for each of {copies} copies, but this machine has {gpus}"
        raise ConfigError("server.tensor_parallel", f"{problem}; {gpus // copies} at most, or fewer server.data_parallel")
    heads = int(text.get("num_attention_heads") or 0)
    kv_heads = int(text.get("num_key_value_heads") or heads)
    if not _divides(tensor_parallel, heads, kv_heads):
        fitting = ", ".join(str(number) for number in range(1, _MOST + 1) if _divides(number, heads, kv_heads))
        problem = f"{heads} attention heads and {kv_heads} key-value heads do not divide among {tensor_parallel} GPUs"
        raise ConfigError("server.tensor_parallel", f"{problem}; {fitting} would")
    experts = int(text.get("num_local_experts") or text.get("num_experts") or 0)
    ranks = tensor_parallel * copies
    if "--enable-expert-parallel" in server.extra_args and experts % ranks:
        fitting = ", ".join(str(number) for number in range(1, _MOST + 1) if experts % number == 0)
        problem = f"{experts} experts do not divide among {tensor_parallel} x {copies} GPUs"
        raise ConfigError("server.tensor_parallel", f"{problem}; {fitting} GPUs in all would")


def _divides(gpus: int, heads: int, kv_heads: int) -> bool:
    return heads % gpus == 0 and (kv_heads % gpus == 0 or gpus % kv_heads == 0)
