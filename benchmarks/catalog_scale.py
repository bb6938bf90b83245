"""How a catalog's size tells: building the trie, its memory, decoding one request, whole and narrowed.

Claims: at most 40 bytes per item; decoding with a million items takes at most 1.5 times what it takes with ten thousand.
Random catalogs of distinct SIDs of three levels with 256 codes (16.8 million possible); one request, a prompt of 200
tokens, 50 beams, the 4-layer, 256-wide model in fp32. `narrowed` decodes in a view of a random half of the items that is
made for the request (`CatalogTrie.narrow`), and `narrow` is the time to make it. Every list is checked: distinct SIDs of
the catalog, and in the view only those that it holds. Each size runs in fresh processes; the median is shown.

    python benchmarks/catalog_scale.py                                      # 10^3 to 10^7
    python benchmarks/catalog_scale.py --items 1000 --model tiny --repeats 1 --seconds 0.2
"""

import time
from statistics import median

import numpy as np
import torch
from memory import peak_gb
from setting import SIZES, Measured, alternate, machine, parser, positive, random_model, repeat, report, table

from minionerec.tree import BeamResult, CatalogTrie, beam_search

LEVELS, CODES = 3, 256


def random_codes(items: int, seed: int = 0) -> np.ndarray:
    """Distinct SIDs, (items, LEVELS), codes from 0 to 255, in random order."""
    numbers = np.random.default_rng(seed).choice(CODES**LEVELS, items, replace=False)
    return np.stack([numbers // CODES**2, numbers // CODES % CODES, numbers % CODES], axis=1).astype(np.int32)


def check(found: BeamResult, trie: CatalogTrie, codes: np.ndarray, first: int, allowed: np.ndarray) -> None:
    """Stop unless the lists hold distinct SIDs of the allowed items.

    Raises:
        SystemExit: they do not.
    """
    numbers = codes[allowed].astype(np.int64) @ [CODES**2, CODES, 1]
    local = found.tokens[0].numpy() - first - CODES * np.arange(LEVELS)
    listed = local @ [CODES**2, CODES, 1]
    if len(np.unique(listed)) != len(listed) or not np.isin(listed, numbers).all() or not found.scores.isfinite().all():
        raise SystemExit(f"A list of {len(trie)} SIDs holds invalid or repeated SIDs.")


def measure(items: int, model: str, prompt: int, beams: int, seconds: float) -> Measured:
    """Build a trie, then decode one request with and without a filter."""
    codes = random_codes(items)
    first = SIZES[model]["vocabulary"]
    matrix = codes + first + CODES * np.arange(LEVELS, dtype=np.int32)
    before = peak_gb()
    started = time.perf_counter()
    trie = CatalogTrie.from_codes(matrix)
    figures = {"build": time.perf_counter() - started, "before": before, "build peak": peak_gb(), "bytes": trie.nbytes / items}
    lm = random_model(model, LEVELS * CODES)
    ids = torch.randint(0, first, (1, prompt), generator=torch.Generator().manual_seed(1))
    times, found = repeat(lambda: beam_search(lm, ids, trie=trie, num_beams=beams), seconds)
    check(found, trie, codes, first, np.ones(items, dtype=bool))
    figures["decode"] = median(times[1:] or times)
    allowed = np.random.default_rng(1).random(items) < 0.5
    times, view = repeat(lambda: trie.narrow(allowed), seconds)
    figures["narrow"] = median(times)
    times, found = repeat(lambda: beam_search(lm, ids, trie=view, num_beams=beams), seconds)
    check(found, view, codes, first, allowed)
    figures["narrowed"] = median(times[1:] or times)
    figures["peak"] = peak_gb()
    return figures, {}


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, ("ours",))
    options.add_argument("--items", type=positive, nargs="+", default=[10**power for power in range(3, 8)])
    options.add_argument("--model", choices=("tiny", "small"), default="small")
    options.add_argument("--prompt", type=positive, default=200)
    options.add_argument("--beams", type=positive, default=50)
    arguments = options.parse_args(argv)
    shape = (arguments.model, arguments.prompt, arguments.beams, arguments.seconds)
    if arguments.only:
        return report(arguments, measure(arguments.items[0], *shape))
    about = f"model {arguments.model}, prompt {arguments.prompt}, {arguments.beams} beams"
    print(f"{machine()}; {LEVELS} levels of {CODES} codes; {about}")
    rows = []
    for items in arguments.items:
        flags = ["--items", str(items)]
        for name, value in zip(("--model", "--prompt", "--beams", "--seconds"), shape, strict=True):
            flags += [name, str(value)]
        figures = alternate(__file__, ("ours",), flags, arguments.repeats)["ours"][0]
        memory = f"{figures['build peak']:.2f} ({figures['before']:.2f})"
        decoding = [1e3 * figures[name] for name in ("decode", "narrow", "narrowed")]
        rows.append([items, figures["build"], figures["bytes"], memory, *decoding, figures["peak"]])
    header = "items|build s|bytes per item|build's peak GB (before)|decode ms|narrow ms|narrowed decode ms|peak GB"
    table(header.split("|"), rows)


if __name__ == "__main__":
    main()
