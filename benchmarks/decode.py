"""Constrained beam search: ours (`beam_search`) against transformers' `generate` with a vectorised trie processor.

Claims: 50 beams after a prompt of 200 tokens on the Industrial trie are at least 38 times faster for a 4-layer, 256-wide model
at batch 4 in fp32, and at least 30 times for a Qwen2.5-0.5B-shaped one at batch 2 in bf16. Both return the same lists: in fp32
the run stops unless ranked SIDs are equal and scores within 1e-4. In bf16 two orders of computation round apart and near
ties change places: the table says how much of the lists agrees, and how near either comes to the lists in fp32.

`floor` is the number of tokens that a search cannot do without, P + (levels - 1) * beams per prompt (a trie with fewer first
tokens than beams needs a little less); `plain forward` is the time of one ordinary forward pass over as many tokens. Every
figure is the median over fresh processes, ours and the peer in turn.

    python benchmarks/decode.py                                           # the small model, all prompts and beams
    python benchmarks/decode.py --model 0.5b --batch 2 --settings 200:50 --repeats 2     # minutes per repeat
    python benchmarks/decode.py --model tiny --settings 20:5              # seconds
"""

import argparse
from statistics import median

import torch
from memory import peak_gb
from setting import (
    SIZES,
    Measured,
    TrieTable,
    alternate,
    generate_beams,
    in_fresh_process,
    industrial_codes,
    machine,
    parser,
    positive,
    random_model,
    repeat,
    report,
    table,
)

from minionerec.tree import CatalogTrie, beam_search

SETTINGS = [(200, 50), (64, 50), (512, 50), (200, 10), (200, 200)]
SIDES = ("ours", "peer", "fp32")


def measure(side: str, model: str, batch: int, prompt: int, beams: int, seconds: float) -> Measured:
    """Time one side; `fp32` is ours in fp32 with the weights of the bf16 model.

    Returns:
        seconds, tokens computed per prompt, peak memory and, for ours, the seconds of the plain forward; `sids` and `scores`.
    """
    codes, _ = industrial_codes()
    trie = CatalogTrie.from_codes(codes + SIZES[model]["vocabulary"])
    lm = random_model(model, int(codes.max()) + 1, torch.bfloat16 if model == "0.5b" else torch.float32)
    if side == "fp32":
        lm = lm.float()
    ids = torch.randint(0, SIZES[model]["vocabulary"], (batch, prompt), generator=torch.Generator().manual_seed(1))
    loaded = peak_gb()
    tokens = 0

    def count(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal tokens
        tokens += inputs[0].numel()

    def search(some: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if side == "peer":
            return generate_beams(lm, some, TrieTable(trie, some.shape[1]), beams, trie.depth)
        found = beam_search(lm, some, trie=trie, num_beams=beams)
        return found.tokens, found.scores

    search(ids[:, :8])  # first calls of kernels
    hook = lm.get_input_embeddings().register_forward_pre_hook(count)
    with torch.no_grad():
        times, (sids, scores) = repeat(lambda: search(ids), seconds)
        hook.remove()
        figures = {"seconds": median(times), "loaded": loaded, "peak": peak_gb(), "tokens": tokens / len(times) / batch}
        if side == "ours":
            floor = prompt + (trie.depth - 1) * beams
            plain = torch.randint(0, SIZES[model]["vocabulary"], (batch, floor))
            times, _ = repeat(lambda: lm(plain, use_cache=False, logits_to_keep=1), seconds)
            figures.update(plain=median(times), floor=floor)
    return figures, {"sids": sids, "scores": scores}


def overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Share of the SIDs in the first lists that are in the second's: both (batch, beams, levels)."""
    shared = sum(
        len(set(map(tuple, ours)) & set(map(tuple, theirs)))
        for ours, theirs in zip(first.tolist(), second.tolist(), strict=True)
    )
    return shared / (first.shape[0] * first.shape[1])


def check(ours: dict[str, torch.Tensor], peer: dict[str, torch.Tensor]) -> float:
    """The largest difference of scores, after the proof that the lists are equal.

    Raises:
        SystemExit: they are not.
    """
    difference = float((ours["scores"] - peer["scores"]).abs().max())
    if not torch.equal(ours["sids"], peer["sids"]) or difference > 1e-4:
        same = overlap(ours["sids"], peer["sids"])
        raise SystemExit(f"The lists differ: overlap {same:.4f}, largest score difference {difference:.2e}.")
    return difference


def setting(text: str) -> tuple[int, int]:
    """`200:50`: a prompt of 200 tokens, 50 beams.

    Raises:
        ArgumentTypeError: anything else.
    """
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not PROMPT:BEAMS, two numbers above 0 such as 200:50")
    return int(parts[0]), int(parts[1])


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, SIDES)
    options.add_argument("--model", choices=SIZES, default="small")
    options.add_argument("--batch", type=positive, default=4)
    options.add_argument("--settings", nargs="+", type=setting, default=SETTINGS, metavar="PROMPT:BEAMS")
    arguments = options.parse_args(argv)
    if arguments.only:
        prompt, beams = arguments.settings[0]
        measured = measure(arguments.only, arguments.model, arguments.batch, prompt, beams, arguments.seconds)
        return report(arguments, measured)
    print(f"{machine()}; {industrial_codes()[1]}; model {arguments.model}, batch {arguments.batch}")
    rows = []
    for prompt, beams in arguments.settings:
        flags = ["--model", arguments.model, "--batch", str(arguments.batch), "--settings", f"{prompt}:{beams}"]
        flags += ["--seconds", str(arguments.seconds)]
        found = alternate(__file__, ("ours", "peer"), flags, arguments.repeats)
        (ours, our_lists), (peer, peer_lists) = found["ours"], found["peer"]
        if arguments.model == "0.5b":
            _, whole = in_fresh_process(__file__, [*flags, "--only", "fp32"])
            print_agreement(our_lists, peer_lists, whole)
        else:
            print(f"prompt {prompt}, {beams} beams: same lists, scores within {check(our_lists, peer_lists):.1e}", flush=True)
        rows.append(
            [
                prompt,
                beams,
                ours["seconds"],
                peer["seconds"],
                peer["seconds"] / ours["seconds"],
                peer["tokens"] / ours["tokens"],
                ours["tokens"] / ours["floor"],
                ours["seconds"] / ours["plain"],
                f"{ours['peak']:.2f} ({ours['loaded']:.2f})",
                f"{peer['peak']:.2f} ({peer['loaded']:.2f})",
            ]
        )
    header = "prompt|beams|ours s|peer s|times faster|times fewer tokens|tokens / floor|time / plain forward"
    table([*header.split("|"), "ours peak GB (before)", "peer peak GB (before)"], rows)


def print_agreement(ours: dict[str, torch.Tensor], peer: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    """How far lists in bf16 agree with one another and with those in fp32."""
    for name, first, second in (("ours and peer", ours, peer), ("ours and fp32", ours, whole), ("peer and fp32", peer, whole)):
        same = overlap(first["sids"], second["sids"])
        difference = (first["scores"] - second["scores"]).abs()
        apart = f"{difference.mean():.1e} apart, at most {difference.max():.1e}"
        print(f"{name}: {same:.1%} of the SIDs; scores at equal ranks {apart}", flush=True)


if __name__ == "__main__":
    main()
