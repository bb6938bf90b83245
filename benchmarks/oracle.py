"""Exact scores of a whole catalog, by the number of tree tokens that a pass holds.

A row names the model and the tokens of a pass per prompt; `budget` is as many as fit into the memory that is allowed, what
earlier versions took on a CPU, too. Both models have random weights: TIGER's T5 on random SIDs of Beauty's shape (12,101
items, four levels), and a Qwen2 of the 2-core size on Industrial's shipped SIDs if the shared data are there, else on random
ones. Times are CPU seconds of one thread for one prompt, the shortest of all repeats; the repeats of all rows alternate. It
ends with an error if scores of a row differ from those of `budget` by more than 1e-4.

    python benchmarks/oracle.py       # two minutes
"""

import argparse
import time
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from setting import industrial_codes, machine, positive, table
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, T5Config, T5ForConditionalGeneration

from minionerec.tree import CatalogTrie, exact_scores
from minionerec.tree.prompt_cache import PromptCache

AGREE = 1e-4
BUDGET = "budget"


def models(items: int) -> Iterator[tuple[str, PreTrainedModel, CatalogTrie]]:
    """Each model with the trie of its catalog; `items` is of the larger one."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    levels = np.stack([rng.integers(1 + 256 * level, 257 + 256 * level, items) for level in range(4)], axis=1)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=1 + 4 * 256, **sizes, decoder_start_token_id=0, pad_token_id=0)).eval()
    t5.set_attn_implementation("sdpa")
    yield "T5, Beauty's shape", t5, CatalogTrie.from_codes(levels)
    codes, catalog = industrial_codes()
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = Qwen2Config(vocab_size=int(codes.max()) + 1, num_hidden_layers=4, **sizes)
    yield f"Qwen2, {catalog}", Qwen2ForCausalLM(config).eval(), CatalogTrie.from_codes(codes)


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=positive, nargs="+", default=[1024, 512, 256, 128])
    options.add_argument("--items", type=positive, default=12_101)
    options.add_argument("--repeats", type=positive, default=3)
    arguments = options.parse_args(argv)
    torch.set_num_threads(1)
    print(machine())
    rows = []
    for name, model, trie in models(arguments.items):
        prompt = torch.randint(1, model.config.vocab_size, (1, 40))
        seconds: dict[str | int, list[float]] = {most: [] for most in (BUDGET, *arguments.tokens)}
        scores: dict[str | int, list[torch.Tensor]] = {}
        for _ in range(arguments.repeats):
            for most in seconds:
                prompts = PromptCache.compute(model, prompt, None, trie, "vocabulary")
                held = most if isinstance(most, int) else budget(prompts)
                start = time.process_time()
                scores[most] = exact_scores.prefix_scores(prompts, lambda held=held: held)
                seconds[most].append(time.process_time() - start)
        for most, times in seconds.items():
            difference = max(float((a - b).abs().max()) for a, b in zip(scores[BUDGET], scores[most], strict=True))
            if not difference <= AGREE:
                raise SystemExit(f"{name}: scores in passes of {most} tokens differ by {difference:.1e}, more than {AGREE}.")
            rows.append([name, str(most), f"{min(times):.2f}", f"{min(seconds[BUDGET]) / min(times):.1f}", f"{difference:.1e}"])
    table(["model", "tokens a pass", "CPU seconds", "times faster than budget", "largest difference"], rows)


def budget(prompts: PromptCache) -> int:
    """How many tokens fit into the memory that is allowed, whatever is best on a CPU."""
    with mock.patch.object(exact_scores, "CPU_TOKENS", 1 << 62):
        return exact_scores.chunk_size(prompts, exact_scores.PASS_BYTES)


if __name__ == "__main__":
    main()
