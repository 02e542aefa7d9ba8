"""Plays the stage `prefix-cache` of gpu_bench.py on vLLM's own KV cache manager, without a model or a GPU.

    python scripts/kv_cache_simulation.py --share 0.95 --growing 12

Conversations with gpt-oss-120b's two kinds of layers (half of them see 128 tokens) grow turn by turn, wait and go on. Blocks are
allocated, cached, freed and evicted by vLLM (0.32); scheduling is reduced to what matters for blocks: running requests first,
then waiting ones in their order, 1,024 tokens per step, and the last request is preempted if no block is left.
"""

from __future__ import annotations

import argparse
import heapq
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from aimo_solver.lab.bench.prefix_cache import CacheLoad, TurnRecord, tabulate

if TYPE_CHECKING:  # vLLM takes long to import, and --help does not need it
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import Request

BLOCK, WINDOW, STEP, CONTEXT = 16, 128, 1_024, 65_536
_WINDOW_BLOCKS = (WINDOW + STEP) // BLOCK + 1  # of one request: vLLM counts them into the tokens that the cache holds
_PREFILL_S, _DECODE_S = 0.055, 0.013  # seconds of a step with and without a prompt, of 16 streams on an H200
_RESULT_TOKENS = 30


def manager(kv_tokens: int, interval: int | None) -> KVCacheManager:
    """A KV cache that holds `kv_tokens` tokens, as vLLM counts them."""
    import torch
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec

    blocks = kv_tokens * (CONTEXT // BLOCK + _WINDOW_BLOCKS) // CONTEXT
    shape: dict[str, Any] = {"block_size": BLOCK, "num_kv_heads": 8, "head_size": 64, "dtype": torch.uint8}
    groups = [
        KVCacheGroupSpec(["full"], FullAttentionSpec(**shape)),
        KVCacheGroupSpec(["window"], SlidingWindowSpec(**shape, sliding_window=WINDOW)),
    ]
    config = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups, prefix_cache_retention_interval=interval
    )
    return KVCacheManager(
        config, CONTEXT, scheduler_block_size=BLOCK, hash_block_size=BLOCK, max_in_flight_tokens=2 * STEP, enable_caching=True
    )


@dataclass
class Conversation:
    """One conversation; `computed` tokens were in the cache after its last turn."""

    number: int
    end: int
    tokens: list[int] = field(default_factory=list)
    turns: int = 0
    computed: int = 0


@dataclass
class Turn:
    """A request that waits or runs."""

    conversation: Conversation
    request: Request
    asked: float
    sampled: int = 0
    recorded: bool = False


class Simulation:
    """The conversations of a load on one KV cache."""

    def __init__(self, load: CacheLoad, interval: int | None) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

        init_none_hash(sha256)
        self.load = load
        self.draw = random.Random(13)
        self.cache = manager(load.kv_tokens, interval)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        self.conversations = [Conversation(number, end) for number, end in enumerate(load.ends(CONTEXT))]
        self.asleep = [(self.draw.uniform(0, 0.1), one.number) for one in self.conversations]
        self.waiting: list[Turn] = []
        self.running: list[Turn] = []
        self.records: list[TurnRecord] = []
        self.preempted = 0
        self.serial = 0
        self.now = 0.0

    def run(self) -> None:
        """Plays all conversations to their ends."""
        heapq.heapify(self.asleep)
        while self.asleep or self.waiting or self.running:
            while self.asleep and self.asleep[0][0] <= self.now:
                self._ask(self.conversations[heapq.heappop(self.asleep)[1]])
            if self.waiting or self.running:
                self.cache.new_step_starts()
                left = self._continue(STEP)
                left = self._admit(left)
                self.now += _DECODE_S if left >= STEP - len(self.running) else _PREFILL_S
                self._sample()
            else:
                self.now = self.asleep[0][0]

    def _ask(self, one: Conversation) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        growing = one.turns < self.load.growing
        more = max(1, one.end // self.load.growing - self.load.sampled) if growing else _RESULT_TOKENS
        self.serial += 1
        one.tokens = [*one.tokens, *range(self.serial << 20, (self.serial << 20) + more)]
        parameters = SamplingParams(max_tokens=self.load.sampled)
        request = Request(str(self.serial), list(one.tokens), parameters, None, block_hasher=self.hasher)
        self.waiting.append(Turn(one, request, self.now))

    def _continue(self, left: int) -> int:
        """Schedules the requests that run; returns what is left of the step."""
        for turn in list(self.running):
            wanted = min(turn.request.num_tokens - turn.request.num_computed_tokens, left)
            while wanted > 0 and turn in self.running:
                if self.cache.allocate_slots(turn.request, wanted) is not None:
                    turn.request.num_computed_tokens += wanted
                    left -= wanted
                    break
                last = self.running.pop()
                self.cache.free(last.request)
                last.request.num_computed_tokens = 0
                self.waiting.insert(0, last)
                self.preempted += 1
        return left

    def _admit(self, left: int) -> int:
        """Starts requests that wait, while there is room; returns what is left of the step."""
        while self.waiting and left > 0:
            turn = self.waiting[0]
            blocks, hit, turn.request.shared_prefix_boundary = self.cache.get_computed_blocks(turn.request)
            wanted = min(turn.request.num_tokens - hit, left)
            options = {"num_new_computed_tokens": hit, "new_computed_blocks": blocks, "full_sequence_must_fit": True}
            if self.cache.allocate_slots(turn.request, wanted, **options) is None:
                break
            self.running.append(self.waiting.pop(0))
            turn.request.num_computed_tokens = hit + wanted
            left -= wanted
            if turn.conversation.turns and not turn.recorded:
                turn.recorded = True
                fill = sum(len(one.tokens) for one in self.conversations) / self.load.kv_tokens
                whole = turn.conversation.computed // BLOCK * BLOCK
                self.records.append(TurnRecord(fill=fill, whole=whole, cached=hit, seconds=self.now - turn.asked))
        return left

    def _sample(self) -> None:
        for turn in list(self.running):
            if turn.request.num_computed_tokens < turn.request.num_tokens:
                continue
            turn.sampled += 1
            turn.request.append_output_token_ids((1 << 50) + (self.serial << 10) + turn.sampled)
            if turn.sampled == self.load.sampled:
                self.running.remove(turn)
                self.cache.free(turn.request)
                one = turn.conversation
                one.tokens = list(turn.request.all_token_ids)
                one.computed = len(one.tokens) - 1
                one.turns += 1
                if one.turns < self.load.growing + self.load.steady:
                    heapq.heappush(self.asleep, (self.now + self.draw.uniform(*self.load.wait_s), one.number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv-tokens", type=int, default=733_808, help="tokens that the KV cache holds; the default is an H100's")
    parser.add_argument("--share", type=float, default=0.95, help="share of the KV cache that the conversations fill")
    parser.add_argument("--growing", type=int, default=12, help="turns until they fill it; 1 prefills each at once")
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--interval", type=int, help="vLLM's --prefix-cache-retention-interval")
    options = parser.parse_args()
    load = CacheLoad(
        kv_tokens=options.kv_tokens, share=options.share, growing=options.growing, conversations=options.conversations
    )
    simulation = Simulation(load, options.interval)
    simulation.run()
    ends = [one.end for one in simulation.conversations]
    result = tabulate("kv-cache-simulation", simulation.records, kv_tokens=load.kv_tokens, ends=ends)
    result.show(Console(width=160))
    print(f"- {simulation.preempted} preempted; {simulation.now:.0f} s simulated")


if __name__ == "__main__":
    main()
