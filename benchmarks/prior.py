"""Beam search with a prior mixed in (`CatalogTrie.mixed`) against plain beam search over the catalog.

Claim: a distribution over the 3,670 SIDs of the Industrial catalog, another for each of 32 prompts, adds at most a quarter to
the time of a search with 50 beams by the main job's model (4 layers, 192 wide) at prompts of 30 tokens. The lists are checked:
the run stops unless every score equals the mixture of `score_catalog` and of the prior within 1e-4, and every list that is
called exact is the top of that mixture. `flat` is one long tail over all items, as popularity has it; `spiky` has a hundred
probable items and a floor below them, as transitions and text neighbours do. `top` is the share of the exact top that the lists
hold. Plain and mixed searches alternate in one
process; times are the CPU time of its one thread, the shortest of all repeats, so that other programs hardly count.

    python benchmarks/prior.py                           # a minute
    python benchmarks/prior.py --model tiny --batch 4 --repeats 2
"""

import argparse
import time

import torch
from setting import SIZES, industrial_codes, machine, positive, random_model, table

from minionerec.tree import BeamResult, CatalogTrie, Prior, beam_search, score_catalog

KINDS = ("flat", "spiky")


def probabilities(kind: str, requests: int, leaves: int, seed: int) -> torch.Tensor:
    """A distribution over the SIDs for each request, (requests, leaves) float64."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(requests, leaves, generator=generator).argsort(1).double()
    weights = 1 / (order + 10) if kind == "flat" else torch.exp(-order.clamp(max=100) / 10) + 1e-4
    return weights / weights.sum(1, keepdim=True)


def check(result: BeamResult, model_scores: torch.Tensor, prior: Prior) -> tuple[float, float]:
    """The largest difference between a listed score and the mixture's, and the share of the exact top that the lists hold.

    Raises:
        SystemExit: a score, or a list that is called exact, is wrong.
    """
    share = prior.share.double()[:, None]
    expected = ((1 - share) * model_scores.double().exp() + share * prior.leaves).log()
    difference = float((result.scores - expected.gather(1, result.leaves)).abs().max())
    best = expected.topk(result.scores.shape[1])
    apart = float((result.scores - best.values)[result.exact].abs().max()) if bool(result.exact.any()) else 0.0
    if max(difference, apart) > 1e-4:
        raise SystemExit(f"The lists are wrong: scores differ by {difference:.1e}, exact lists by {apart:.1e}.")
    listed = (result.leaves[:, :, None] == best.indices[:, None]).any(-1)
    return difference, float(listed.float().mean())


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", choices=SIZES, default="main")
    options.add_argument("--batch", type=positive, default=32)
    options.add_argument("--prompt", type=positive, default=30, help="tokens")
    options.add_argument("--beams", type=positive, default=50)
    options.add_argument("--repeats", type=positive, default=10)
    arguments = options.parse_args(argv)
    torch.set_num_threads(1)
    codes, catalog = industrial_codes()
    vocabulary = SIZES[arguments.model]["vocabulary"]
    trie = CatalogTrie.from_codes(codes + vocabulary)
    model = random_model(arguments.model, int(codes.max()) + 1)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocabulary, (arguments.batch, arguments.prompt), generator=generator)
    model_scores = torch.cat([score_catalog(model, row[None], trie=trie, normalise_over="catalog") for row in ids])
    print(f"{machine()}; {catalog}, model {arguments.model}, batch {arguments.batch}, prompt {arguments.prompt} tokens")
    rows = []
    for kind in KINDS:
        prior = Prior(probabilities(kind, len(ids), len(trie), seed=2), torch.full((len(ids),), 0.5))
        times: dict[str, list[float]] = {"plain": [], "mixed": []}
        for number in range(arguments.repeats + 1):
            for side, some in (("plain", trie), ("mixed", trie.mixed(prior))):
                started = time.process_time()
                result = beam_search(model, ids, trie=some, num_beams=arguments.beams, normalise_over="catalog")
                if number:  # the first call of a kernel takes longer
                    times[side].append(time.process_time() - started)
        difference, top = check(result, model_scores, prior)
        plain, mixed = min(times["plain"]), min(times["mixed"])
        rows.append([kind, 1e3 * plain, 1e3 * mixed, f"{mixed / plain:.3f}", f"{top:.3f}", f"{difference:.1e}"])
    table(["prior", "plain ms", "with a prior ms", "ratio", "top", "largest difference"], rows)


if __name__ == "__main__":
    main()
