"""Beam search of a T5 over a catalog: ours on the tree against transformers' `generate` with a vectorised trie processor.

Claim: the same lists, scores within 1e-5, in at most two thirds of the time; where one does not hold, it ends with an
error. `--faster 0` leaves the time out, as few users or beams prove nothing about it. The model has LETTER's sizes for TIGER
(4 + 4 layers, 128 wide, 6 heads of 64, inner width 1,024) with random weights. The catalog is Industrial's shipped SIDs if the
shared data are there, else random SIDs of its shape; the first line of the output says which. A prompt is a history of ten
items. Both sides alternate in one process; times are the CPU time of its one thread, the shortest of all repeats, so that other
programs hardly count.

    python benchmarks/tiger.py        # a minute
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from setting import TrieTable, industrial_codes, machine, positive, table
from transformers import LogitsProcessorList, T5Config, T5ForConditionalGeneration

from minionerec.tree import CatalogTrie, beam_search

AGREE = 1e-5
FASTER = 1.5


def bound(text: str) -> float:
    """A finite number, 0 or more.

    Raises:
        ValueError: it is none.
    """
    if not 0 <= (value := float(text)) < math.inf:
        raise ValueError(text)
    return value


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--users", type=positive, default=16)
    options.add_argument("--beams", type=positive, default=20)
    options.add_argument("--repeats", type=positive, default=3)
    options.add_argument("--faster", type=bound, default=FASTER, help="than generate, so many times; less is an error")
    arguments = options.parse_args(argv)
    torch.set_num_threads(1)
    codes, catalog = industrial_codes()
    codes = codes + 2  # 0 pads and starts, 1 ends
    trie = CatalogTrie.from_codes(codes)
    sizes = {"d_model": 128, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 6}
    torch.manual_seed(0)
    config = T5Config(vocab_size=int(codes.max()) + 1, **sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    model = T5ForConditionalGeneration(config).eval()
    model.set_attn_implementation("sdpa")
    items = torch.randint(len(codes), (arguments.users, 10))
    prompts = torch.from_numpy(codes)[items].flatten(1)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        result = beam_search(model, prompts, trie=trie, num_beams=arguments.beams)
        return result.tokens, result.scores

    @torch.no_grad()
    def generate() -> tuple[torch.Tensor, torch.Tensor]:
        output = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=arguments.beams,
            num_return_sequences=arguments.beams,
            do_sample=False,
            length_penalty=0.0,
            max_new_tokens=trie.levels,
            min_new_tokens=trie.levels,
            logits_processor=LogitsProcessorList([TrieTable(trie, prompt_length=1)]),  # behind the start token
            return_dict_in_generate=True,
            output_scores=True,
        )
        shape = (arguments.users, arguments.beams)
        return output.sequences[:, 1:].view(*shape, trie.levels), output.sequences_scores.view(shape)

    best: dict[str, float] = {}
    lists: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    sides: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {"ours": ours, "generate": generate}
    for _ in range(arguments.repeats):
        for side, search in sides.items():
            started = time.process_time()
            lists[side] = search()
            best[side] = min(best.get(side, float("inf")), time.process_time() - started)
    (sids, scores), (their_sids, their_scores) = lists["ours"], lists["generate"]
    off = float((scores - their_scores).abs().max())
    if not torch.equal(sids, their_sids) or off > AGREE:
        raise SystemExit(f"The lists differ, or a score by {off:.2g}.")
    print(f"{machine()}; {catalog}; {arguments.users} users, {arguments.beams} beams; scores within {off:.2g}")
    each = {side: 1000 * seconds / arguments.users for side, seconds in best.items()}
    faster = each["generate"] / each["ours"]
    table(["ours, CPU ms a user", "generate", "times faster"], [[*each.values(), faster]])
    if faster < arguments.faster:
        raise SystemExit(f"The search is {faster:.2f} times as fast as generate, not {arguments.faster:g} times.")


if __name__ == "__main__":
    main()
