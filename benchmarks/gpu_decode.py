"""Beam search on a GPU: recorded as CUDA graphs against launched kernel by kernel, `generate` and a plain forward.

Goals (50 beams, prompts of 200 tokens, the shape of Qwen2.5 in bf16 with random weights, an H100 or H200): 0.5B at batch 1 at
most 12 ms, at batch 8 at most 1.5 times and from 32 on at most 1.3 times a plain forward over as many tokens (prompt + 2 x
beams); 5 times faster than `generate` at batch 1 and 20 times at batch 32; 1.5B at batch 1 at most 20 ms; 2,000 requests a
second at 0.5B, prompts of 100 tokens, batch 256.

Sides: `graphs` (`SearchGraphs`), `catalog` (the same, each step normalised over the catalog, as the presets of SmolLM2 and most
of small models have it; all others over the vocabulary, as `generate` and those of Qwen2.5 do), `launches` (`beam_search`),
`generate` (transformers, with a vectorised trie processor, up to batch 32), `plain` (one forward). With `--compiled parts`
torch.compile first takes norms and feed-forward layers, with `whole` the forward of all layers, which takes minutes for each
shape: `launches` and `graphs` then show what compiling gives on either way. `--without twin` records the model as it is
(`tree/fewer_kernels.py`), which `--compiled` implies: a twin is not compiled. The lists of graphs and launches are compared: in
float32 the run stops unless they are equal, in bf16 the JSON says how many SIDs agree, as a prompt that is padded to its bucket
rounds otherwise. Without a GPU a stand-in takes the place of the graphs: the figures then say nothing, the code is the same.

    python benchmarks/gpu_decode.py --out decode.json                              # on a GPU, about 2 minutes
    python benchmarks/gpu_decode.py --cells 0.5b:1:208 --compiled parts            # one cell
    python benchmarks/gpu_decode.py --cells tiny:2:20 --device cpu --beams 5       # seconds
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
import torch
from setting import (
    SIZES,
    TrieTable,
    check_places,
    codes_of_run,
    generate_beams,
    industrial_codes,
    kernels_of,
    machine,
    peak_memory,
    positive,
    profiler,
    random_model,
    repeat,
    table,
    write_json,
)
from transformers import PreTrainedModel

from minionerec.tree import BeamResult, CatalogTrie, SearchGraphs, beam_search, fewer_kernels, graphs
from minionerec.tree.capture import CallRecorder

CELLS = "small:4:200 0.5b:1:200 0.5b:8:200 0.5b:32:200 0.5b:64:200 0.5b:256:200 0.5b:256:100 1.5b:1:200"
MOST_GENERATED = 32  # rows of `generate`, which repeats each prompt's cache for every beam
SIDES = ("graphs", "catalog", "launches", "plain", "generate")
TIMES = "graphs ms|catalog ms|launches ms|plain ms|generate ms"
HEADER = f"model|batch|prompt|{TIMES}|graphs / plain|catalog / plain|launches / graphs|generate / graphs|catalog, requests/s"


class Cell(NamedTuple):
    """One row of the table."""

    model: str
    batch: int
    prompt: int


def cell(text: str) -> Cell:
    """`0.5b:8:200`: model, batch, tokens of a prompt.

    Raises:
        ArgumentTypeError: anything else.
    """
    name, *numbers = text.split(":")
    if name not in SIZES or len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL:BATCH:PROMPT, with a model of {', '.join(SIZES)}")
    return Cell(name, *map(int, numbers))


def timed(run: Callable[[], Any], repeats: int, deadline: float) -> dict[str, Any]:
    """Median milliseconds of `run` after a first call, and peak memory (GB); no more runs than time is left."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    first, result = repeat(run, 0.0)
    times, result = repeat(run, max(0.0, min(10.0, deadline - time.monotonic())), repeats)
    return {"ms": 1000 * median(times), "runs": len(times), "first_s": first[0], "peak_gb": peak_memory(), "result": result}


def kernels(run: Callable[[], Any]) -> dict[str, Any]:
    """Where the time of one call goes (`setting.kernels_of`)."""
    with profiler() as profile:
        run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    return kernels_of(profile)


def agreement(ours: BeamResult, theirs: BeamResult, strict: bool) -> dict[str, float]:
    """Share of the SIDs that both lists have, and the largest difference of scores.

    Raises:
        SystemExit: they must be equal, and are not.
    """
    both = (ours.leaves[:, :, None] == theirs.leaves[:, None]).any(-1) & (ours.leaves >= 0)
    shared = float(both.sum() / (ours.leaves >= 0).sum())
    apart = float((ours.scores - theirs.scores).nan_to_num(0).abs().max())
    if strict and (not torch.equal(ours.leaves, theirs.leaves) or apart > 1e-3):
        raise SystemExit(f"Graphs and launches give other lists: {shared:.4f} of the SIDs agree, scores are {apart:.2e} apart.")
    return {"agree": shared, "scores_apart": apart}


def measure(some: Cell, model: PreTrainedModel, trie: CatalogTrie, arguments: argparse.Namespace, deadline: float) -> dict:
    """All sides of one cell."""
    device, beams = arguments.device, arguments.beams
    generator = torch.Generator(device).manual_seed(1)
    vocabulary = SIZES[some.model]["vocabulary"]
    floor = some.prompt + (trie.depth - 1) * beams
    ids = torch.randint(0, vocabulary, (some.batch, some.prompt), generator=generator, device=device)
    row = torch.randint(0, vocabulary, (some.batch, floor), generator=generator, device=device)
    searches = SearchGraphs(model, None if device == "cuda" else CallRecorder())
    options = {"trie": trie, "num_beams": beams}
    sides: dict[str, Callable[[], Any]] = {
        "graphs": lambda: searches.beam_search(ids, **options),
        "catalog": lambda: searches.beam_search(ids, **options, normalise_over="catalog"),
        "launches": lambda: beam_search(model, ids, **options),
        "plain": lambda: model(row, use_cache=False, logits_to_keep=1),
    }
    if some.batch <= MOST_GENERATED and not arguments.compiled:
        processor = TrieTable(trie, some.prompt)
        sides["generate"] = lambda: generate_beams(model, ids, processor, beams, trie.depth)
    measured = {name: timed(run, arguments.repeats, deadline) for name, run in sides.items()}
    results = {name: side.pop("result") for name, side in measured.items()}
    if searches.recorded < 2:
        raise SystemExit("The search could not be recorded; the log above says why.")
    found = {
        **some._asdict(),
        "beams": beams,
        "dtype": str(model.dtype),
        "compiled": arguments.compiled,
        "without": arguments.without,
        **measured,
    }
    found |= agreement(results["graphs"], results["launches"], model.dtype == torch.float32)
    if "generate" in results and model.dtype == torch.float32:
        sids, scores = results["generate"]
        ours = results["launches"]
        found["generate_equal"] = torch.equal(sids, ours.tokens) and bool((scores - ours.scores).abs().max() < 1e-3)
        if not found["generate_equal"]:
            raise SystemExit("`generate` gives other lists.")
    for side in ("graphs", "catalog"):
        found[f"requests_per_s_{side}"] = 1000 * some.batch / measured[side]["ms"]
    if some.batch == 1:
        found["profile"] = kernels(sides["graphs"])
    return found


def compile_model(model: PreTrainedModel, arguments: argparse.Namespace) -> None:
    """Compile the model in place.

    `parts` are those that all layers share whatever their number, so that each shape compiles once; a whole layer reads its
    number to find its cache, and would compile once for each layer. `whole` is the forward of all layers.
    """
    torch._dynamo.config.recompile_limit = 64  # one for each shape
    parts = [model.model]
    if arguments.compiled == "parts":
        parts = [
            part for layer in model.model.layers for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)
        ]
    for part in parts:
        part.compile(backend=arguments.backend, dynamic=False)


def leave_out(part: str | None) -> None:
    """Record without fused norms, without grouped heads, or without both; for the rest of this process."""
    if part == "twin":
        graphs.twin = lambda model: model
    elif part == "norms":
        fewer_kernels.rms_epsilon = lambda module: None
    elif part == "groups":
        fewer_kernels.heads_per_key = lambda model: {1, 2}  # as if layers differed


def columns(found: dict[str, Any]) -> list[Any]:
    """The table's row of a cell."""
    times = {side: found[side]["ms"] if side in found else float("nan") for side in SIDES}
    pairs = (("graphs", "plain"), ("catalog", "plain"), ("launches", "graphs"), ("generate", "graphs"))
    ratios = [times[slow] / times[fast] for slow, fast in pairs]
    requests = found["requests_per_s_catalog"]
    return [found["model"], str(found["batch"]), str(found["prompt"]), *times.values(), *ratios, requests]


@torch.no_grad()
def main(argv: list[str] | None = None, age: float = 0.0) -> None:
    """Measure.

    Args:
        age: of the process, spent on imports (seconds); it counts as a part of `--seconds`.
    """
    began = time.monotonic() - age
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cells", type=cell, nargs="+", default=[cell(text) for text in CELLS.split()], metavar="CELL")
    options.add_argument("--beams", type=positive, default=50)
    options.add_argument("--repeats", type=positive, default=5)
    options.add_argument("--seconds", type=float, default=100.0, help="of the process; cells that begin later are left out")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--compiled", choices=("parts", "whole"), help="compile norms and feed-forward layers, or the forward")
    options.add_argument("--without", choices=("twin", "norms", "groups"), help="record without (a part of) the twin")
    options.add_argument("--backend", default="inductor", help="of torch.compile")
    options.add_argument("--run", type=Path, help="a run whose SIDs are the catalog (default: shared data, else random SIDs)")
    options.add_argument("--out", type=Path, help="a JSON file for all figures, written after every cell")
    arguments = options.parse_args(argv)
    check_places(options, arguments)
    deadline = began + arguments.seconds
    if arguments.compiled:
        arguments.without = "twin"
    torch.backends.cuda.matmul.allow_tf32 = False
    codes, source = codes_of_run(arguments.run) if arguments.run else industrial_codes()
    leave_out(arguments.without)
    changed = "".join(f"; {name}: {value}" for name in ("compiled", "without") if (value := getattr(arguments, name)))
    print(f"{machine()}; {source}; {arguments.beams} beams{changed}", flush=True)
    rows: list[dict[str, Any]] = []
    name, model, trie = "", None, None
    for some in arguments.cells:
        if time.monotonic() > deadline:
            print(f"{':'.join(map(str, some))}: left out, the time is over", flush=True)
            continue
        if some.model != name:
            model = trie = None  # the memory of one model at a time
            dtype = torch.bfloat16 if some.model in ("0.5b", "1.5b") else torch.float32
            name, model = some.model, random_model(some.model, int(codes.max()) + 1, dtype, device=arguments.device)
            vocabulary = SIZES[name]["vocabulary"]
            trie = CatalogTrie.from_codes(codes + vocabulary * (codes >= 0), arguments.device)
            if arguments.compiled:
                compile_model(model, arguments)
        rows.append(measure(some, model, trie, arguments, deadline))
        times = ", ".join(f"{side} {rows[-1][side]['ms']:.1f} ms" for side in SIDES if side in rows[-1])
        print(f"{':'.join(map(str, some))}: {times}; {rows[-1]['agree']:.1%} of the SIDs agree", flush=True)
        write_json(arguments.out, {"catalog": source, "cells": rows})
    table(HEADER.split("|"), [columns(row) for row in rows])
    for row in rows:
        if "profile" in row:
            profile = row["profile"]
            print(f"{row['model']}, one prompt: {profile['calls']} kernels, {profile['ms']:.1f} ms of them; the longest:")
            table(["kernel", "ms", "calls"], [[one["name"], one["ms"], str(one["calls"])] for one in profile["longest"]])


if __name__ == "__main__":
    main(age=time.time() - psutil.Process().create_time())
