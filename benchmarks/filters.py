"""A short filter for each request of a batch: as the few nodes that it changes, and as a mask over the catalog.

Claim: for 16 requests that each deny 100 items of a catalog of a million, `CatalogTrie.without` takes at most 2 ms and 1 MB; a
mask for each of them (`CatalogTrie.narrow`) takes hundreds of times as much. Both make the same view: the run stops unless
every request reaches the same children at each level. `step` is one look-up of the children of 50 nodes per request at the
last level, as a search with 50 beams does. Random catalogs of distinct SIDs of three levels with 256 codes. Each time is the
shortest of all repeats, as calls of a few milliseconds are easily interrupted by other programs.

    python benchmarks/filters.py                       # 10^4 to 10^6 items
    python benchmarks/filters.py --items 1000 --repeats 3
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from catalog_scale import CODES, LEVELS, random_codes
from setting import machine, positive, table

from minionerec.tree import CatalogTrie

_Result = TypeVar("_Result")


def timed(call: Callable[[], _Result], repeats: int) -> tuple[float, _Result]:
    """The shortest milliseconds of a call after a first one, and its result."""
    result, times = call(), []
    for _ in range(repeats):
        started = time.perf_counter()
        result = call()
        times.append(1e3 * (time.perf_counter() - started))
    return min(times), result


def masked(trie: CatalogTrie, hidden: list[list[int]]) -> CatalogTrie:
    """The view by a mask per request."""
    allowed = torch.ones(len(hidden), len(trie.leaf_of_item), dtype=torch.bool)
    for row, items in zip(allowed, hidden, strict=True):
        row[items] = False
    return trie.narrow(allowed)


def check(views: list[CatalogTrie], requests: int, beams: int, seed: int) -> None:
    """Stop unless the views have the same children.

    Raises:
        SystemExit: they do not.
    """
    nodes = torch.zeros(requests, 1, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    for level in range(views[0].depth):
        ours, wanted = (view.children(level, nodes) for view in views)
        if not all(map(torch.equal, ours, wanted)):
            raise SystemExit(f"The views differ at level {level}.")
        nodes = ours[0].masked_fill(~ours[2], -1).flatten(1)
        nodes = nodes[:, torch.randperm(nodes.shape[1], generator=generator)[:beams]]


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=positive, nargs="+", default=[10**4, 10**5, 10**6])
    options.add_argument("--requests", type=positive, default=16)
    options.add_argument("--denied", type=positive, default=100, help="items that each request denies")
    options.add_argument("--beams", type=positive, default=50)
    options.add_argument("--repeats", type=positive, default=50)
    arguments = options.parse_args(argv)
    torch.set_num_threads(1)
    print(
        f"{machine()}; {LEVELS} levels of {CODES} codes; {arguments.requests} requests that deny {arguments.denied} items each"
    )
    rows = []
    for items in arguments.items:
        trie = CatalogTrie.from_codes(random_codes(items) + CODES * np.arange(LEVELS, dtype=np.int32))
        rng = np.random.default_rng(1)
        hidden = [
            rng.choice(items, min(arguments.denied, items - 1), replace=False).tolist() for _ in range(arguments.requests)
        ]
        ours, short = timed(lambda trie=trie, hidden=hidden: trie.without(hidden), arguments.repeats)
        theirs, mask = timed(lambda trie=trie, hidden=hidden: masked(trie, hidden), max(1, arguments.repeats // 10))
        check([short, mask], arguments.requests, arguments.beams, seed=0)
        nodes = torch.randint(0, len(trie.tokens[-2]), (arguments.requests, arguments.beams))
        steps = [
            timed(lambda view=view, nodes=nodes: view.children(LEVELS - 1, nodes), arguments.repeats)[0]
            for view in (trie, short, mask)
        ]
        memory = [(view.nbytes - trie.nbytes) / 1e6 for view in (short, mask)]
        rows.append([items, ours, theirs, *memory, *steps])
    header = "items|without ms|mask ms|without MB|mask MB|step without filter ms|step, without ms|step, mask ms"
    table(header.split("|"), rows)


if __name__ == "__main__":
    main()
