"""The objective `exact`: all prefixes of a catalog behind their prompt in one row, or in several.

A step is the log-probabilities of the whole catalog after four prompts of 12 to 40 tokens and the gradient of a sum of them,
by a Qwen2 of the 2-core size with random weights, on Industrial's shipped SIDs if the shared data are there, else on random
ones. Times are CPU seconds of one thread, the shortest of all repeats; the rows alternate. It ends with an error if log-
probabilities differ from those of one row by more than 1e-4, or a gradient by more than 1e-4 of the largest.

    python benchmarks/catalog_logprobs.py       # a minute
"""

import argparse
import time
from unittest import mock

import torch
from setting import industrial_codes, machine, positive, table
from transformers import Qwen2Config, Qwen2ForCausalLM

from minionerec.tree import CatalogTrie, catalog_logprobs

AGREE = 1e-4
LENGTHS = (40, 25, 33, 12)
LEAST = catalog_logprobs.PER_PROMPT_TOKEN * max(LENGTHS)
ONE_ROW = 10**9


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--prefixes", type=positive, nargs="+", default=[1024, 512, 256, LEAST], help=f"of a row, about; {LEAST} at least"
    )
    options.add_argument("--repeats", type=positive, default=3)
    arguments = options.parse_args(argv)
    torch.set_num_threads(1)
    print(machine())
    codes, catalog = industrial_codes()
    trie = CatalogTrie.from_codes(codes)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=int(codes.max()) + 1, num_hidden_layers=4, **sizes)).eval()
    prompts = [torch.randint(int(codes.max()), (length,)).tolist() for length in LENGTHS]
    weights = torch.rand(len(prompts), len(trie))
    seconds: dict[int, list[float]] = {most: [] for most in (ONE_ROW, *arguments.prefixes)}
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for _ in range(arguments.repeats):
        for most in seconds:
            model.zero_grad()
            start = time.process_time()
            with mock.patch.object(catalog_logprobs, "ROW_PREFIXES", most):
                logprobs = catalog_logprobs.catalog_logprobs(model, prompts, trie=trie)
            (logprobs * weights).sum().backward()
            seconds[most].append(time.process_time() - start)
            gradients = [one.grad.flatten() for one in model.parameters() if one.grad is not None]
            found[most] = logprobs.detach(), torch.cat(gradients)
    rows = []
    for most, times in seconds.items():
        with mock.patch.object(catalog_logprobs, "ROW_PREFIXES", most):
            number = catalog_logprobs.number_of_rows(trie, max(LENGTHS))
        parts, nodes = catalog_logprobs.PrefixRows.of(trie, number).tokens.shape
        logprobs, gradient = (abs(own - one).max().item() for own, one in zip(found[most], found[ONE_ROW], strict=True))
        gradient /= found[ONE_ROW][1].abs().max().item()
        if not (logprobs <= AGREE and gradient <= AGREE):
            raise SystemExit(f"In {parts} rows log-probabilities differ by {logprobs:.1e} and a gradient by {gradient:.1e}.")
        ratio = min(seconds[ONE_ROW]) / min(times)
        rows.append([f"{parts} of {nodes}", f"{min(times):.2f}", f"{ratio:.1f}", f"{logprobs:.1e}", f"{gradient:.1e}"])
    print(f"{catalog}, {sum(map(len, trie.tokens[:-1]))} prefixes")
    table(["rows and prefixes", "CPU seconds a step", "times faster", "log-probabilities", "gradient"], rows)


if __name__ == "__main__":
    main()
