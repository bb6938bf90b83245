"""One SFT step of 1,024 examples: prefix trees against padded batches and against TRL's packing, same gradient.

Claim: on the three tasks of the project over the Industrial catalog and the training rows at hand (`industrial-partial`), a
step computes at least 2.5 times fewer tokens than padded batches do (padding included, on both sides) and takes half the time.
Trees of users' histories are drawn at random until they hold 1,024 examples; every side gets these examples:

- ours: `TreeCollator` and the loss of `TreeTrainer`, micro-batches of whole trees;
- padded: transformers' way, right padding to the longest of a micro-batch, examples in random order;
- sorted: the same, but examples sorted by length over the whole step, which a Trainer only does approximately;
- packed: TRL's `SFTTrainer`, `packing=True` with `bfd`, its batches and its loss (which also logs entropy and accuracy);
- packed-plain: the same batches, but the model's own loss.

Seconds are those of collating, forward and backward; TRL packs the examples beforehand, which is not counted. The run stops
unless loss and gradient agree. Micro-batches and rows have the fastest of several sizes that were tried for each side. Every
figure is the median over fresh processes, all sides in turn.

On a GPU (`--device cuda --bf16 --model 0.5b`) the model has random weights of that shape, memory is the GPU's, and in bf16 the
gradients may differ by a tenth. `--run` takes data and SIDs of a prepared run instead of the shared data.

    python benchmarks/sft_step.py                                              # needs ../shared/data/amazon, or --run RUN
    python benchmarks/sft_step.py --examples 64 --hidden 32 --repeats 1        # small
"""

import argparse
import csv
import json
import random
import re
import tempfile
from ast import literal_eval
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from datasets import Dataset as TokenDataset
from setting import (
    AMAZON,
    INDUSTRIAL,
    SIZES,
    Measured,
    alternate,
    check_places,
    machine,
    parser,
    peak_memory,
    positive,
    random_model,
    repeat,
    report,
    table,
    write_json,
)
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from turns import turn

from minionerec.config import ModelConfig, TaskName
from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, Dataset
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.sft.trainer import Tree, TreeCollator
from minionerec.sft.trees import build_trees, examples_by_task
from minionerec.sid.index import SidIndex
from minionerec.tree import TreeBatch, tree_logprobs

SIDES = ("ours", "padded", "sorted", "packed", "packed-plain")
TASKS: list[TaskName] = ["history_sid_to_sid", "title_to_sid", "sid_to_title"]
IGNORED = -100
MOST_GRADIENTS = 10_000_000  # values of a gradient that are compared
Step = Callable[[], Iterator[tuple[torch.Tensor, int]]]  # per micro-batch its share of the loss and its tokens


def industrial(folder: Path = AMAZON) -> tuple[Dataset, SidIndex]:
    """The partial training rows of Industrial as a Dataset (training split only) and its published SIDs.

    Raises:
        SystemExit: the files are not there.
    """
    (rows,) = list((folder / "train").glob(f"{INDUSTRIAL}*.partial.csv")) or [None]
    items, sids = (folder / "index" / f"{INDUSTRIAL}.{kind}.json" for kind in ("item", "index"))
    if rows is None or not items.exists() or not sids.exists():
        raise SystemExit(f"{folder}: needs train/{INDUSTRIAL}*.partial.csv, index/{items.name} and index/{sids.name}.")
    titles = [item["title"] for item in json.loads(items.read_text(encoding="utf-8")).values()]
    catalog = pl.DataFrame(
        {"item_id": [str(item) for item in range(len(titles))], "title": titles, "text": titles}, schema=CATALOG_SCHEMA
    )
    seen: dict[str, int] = {}
    examples = []
    with rows.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            seen[row["user_id"]] = seen.get(row["user_id"], 0) + 1  # a user's rows are all there, oldest first
            history = literal_eval(row["history_item_id"])
            examples.append((row["user_id"], history, int(row["item_id"]), 0, seen[row["user_id"]]))
    train = pl.DataFrame(examples, schema=SPLIT_SCHEMA, orient="row")
    dataset = Dataset(catalog, train, train.head(0), train.head(0))
    codes = [[int(re.sub(r"\D", "", token)) for token in row] for row in json.loads(sids.read_text(encoding="utf-8")).values()]
    return dataset, SidIndex(np.array(codes, dtype=np.int32), (256, 256, 256), dataset.digest)


def prepared(run: Path | None) -> tuple[Dataset, SidIndex]:
    """Data and SIDs of a finished run; without one, Industrial's."""
    if run is None:
        return industrial()
    dataset = Dataset.load(run / "data")
    return dataset, SidIndex.load(run / "sid", dataset)


def draw(trees: list[Tree], examples: int) -> list[Tree]:
    """Random trees that hold so many examples; the last one is cut."""
    drawn, missing = [], examples
    for tree in random.Random(0).sample(trees, len(trees)):
        drawn.append(tree[:missing])
        missing -= len(drawn[-1])
        if not missing:
            return drawn
    raise SystemExit(f"The training rows hold fewer than {examples} examples.")


def tree_step(model: PreTrainedModel, trees: list[Tree], micro: int, row_tokens: int, labels: int) -> Step:
    """Ours."""
    batches: list[list[Tree]] = [[]]
    for tree in trees:
        if sum(map(len, batches[-1])) >= micro:
            batches.append([])
        batches[-1].append(tree)
    collate = TreeCollator(row_tokens)

    def step() -> Iterator[tuple[torch.Tensor, int]]:
        for some in batches:
            inputs = collate(some)
            inputs.pop("shift_labels")
            batch = TreeBatch(**inputs).to(model.device)
            yield -(batch.weights * tree_logprobs(model, batch).logprobs).sum() / labels, batch.input_ids.numel()

    return step


def padded_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, list[int]]], micro: int, labels: int
) -> Step:
    """Transformers' Trainer: padded micro-batches, the loss of the model."""
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=IGNORED)

    def step() -> Iterator[tuple[torch.Tensor, int]]:
        for start in range(0, len(rows), micro):
            inputs = collate(rows[start : start + micro]).to(model.device)
            yield model(**inputs, use_cache=False, num_items_in_batch=labels).loss, inputs["input_ids"].numel()

    return step


def packed_step(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, list[int]]],
    arguments: argparse.Namespace,
    labels: int,
    folder: str,
    plain: bool,
) -> Step:
    """TRL's packing."""
    on_cpu = arguments.device == "cpu"
    settings = SFTConfig(
        output_dir=folder,
        packing=True,
        packing_strategy="bfd",
        max_length=arguments.packed_tokens,
        per_device_train_batch_size=1,
        use_cpu=on_cpu,
        bf16=False,  # the weights themselves are, on request
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        seed=0,
    )
    data = TokenDataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
    trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)

    def step() -> Iterator[tuple[torch.Tensor, int]]:
        for inputs in trainer.get_train_dataloader():
            if plain:
                loss = model(**inputs, use_cache=False, num_items_in_batch=labels).loss
            else:
                loss = trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(labels, device=model.device))
            yield loss, inputs["input_ids"].numel()

    return step


def measure(side: str, arguments: argparse.Namespace) -> Measured:
    """One side's seconds, tokens, loss, peak memory, and its gradient."""
    dataset, index = prepared(arguments.run)
    sizes = ModelConfig(hidden_size=arguments.hidden, intermediate_size=4 * arguments.hidden, heads=4, vocabulary=8192)
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    if arguments.model:  # the tokenizer numbers fewer tokens than the model has
        model = random_model(arguments.model, len(tokenizer), device=arguments.device)
    model = model.to(arguments.device, torch.bfloat16 if arguments.bf16 else torch.float32)
    examples = examples_by_task(Prompts(dataset, index, tokenizer), TASKS, "train", arguments.stride)
    trees = build_trees(examples, arguments.stride).trees
    trees = draw(trees, arguments.examples)
    branches = [branch for tree in trees for branch in tree]
    labels = sum(len(branch.completion) for branch in branches)
    rows = [
        {
            "input_ids": [*branch.prompt, *branch.completion],
            "attention_mask": [1] * (len(branch.prompt) + len(branch.completion)),
            "labels": [IGNORED] * len(branch.prompt) + list(branch.completion),
        }
        for branch in random.Random(1).sample(branches, len(branches))
    ]
    with tempfile.TemporaryDirectory() as folder:
        if side == "ours":
            step = tree_step(model, trees, arguments.micro, arguments.row_tokens, labels)
        elif side in ("padded", "sorted"):
            rows = sorted(rows, key=lambda row: len(row["input_ids"])) if side == "sorted" else rows
            step = padded_step(model, tokenizer, rows, arguments.padded_micro, labels)
        else:
            step = packed_step(model, tokenizer, rows, arguments, labels, folder, side == "packed-plain")
        loaded = peak_memory()
        model.train()

        def run() -> tuple[float, int]:
            model.zero_grad()
            losses, tokens = 0.0, 0
            for loss, computed in step():
                loss.backward()
                losses += float(loss.detach())
                tokens += computed
            return losses, tokens

        with turn():
            next(step())[0].backward()  # first calls of kernels
            times, (loss, tokens) = repeat(run, arguments.seconds)
    figures = {"seconds": median(times), "tokens": tokens, "loss": loss, "loaded": loaded, "peak": peak_memory()}
    figures["given"] = sum(len(row["input_ids"]) for row in rows)
    # Of a large model only some values: it goes through a file.
    step = max(1, sum(parameter.numel() for parameter in model.parameters()) // MOST_GRADIENTS)
    return figures, {
        "gradient": torch.cat([parameter.grad.flatten()[::step].float().cpu() for parameter in model.parameters()])
    }


def apart(side: Measured, padded: Measured, tolerance: float) -> float:
    """Relative difference of the gradients, |a - b| / |b|.

    Raises:
        SystemExit: it, or that of the losses, is above the tolerance.
    """
    gradient, reference = side[1]["gradient"], padded[1]["gradient"]
    found = float((gradient - reference).norm() / reference.norm())
    if not (found <= tolerance and abs(side[0]["loss"] / padded[0]["loss"] - 1) <= tolerance):
        raise SystemExit(f"The steps differ: losses {side[0]['loss']}, {padded[0]['loss']}, gradients by {found:.1e}.")
    return found


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, SIDES)
    sizes = {"examples": 1024, "stride": 10, "hidden": 256, "micro": 128, "row-tokens": 128}
    for name, default in {**sizes, "padded-micro": 16, "packed-tokens": 256}.items():
        options.add_argument(f"--{name}", type=positive, default=default)
    options.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="ours and padded are always measured")
    options.add_argument("--run", type=Path, help="a run whose data and SIDs are taken")
    options.add_argument("--model", choices=SIZES, help="random weights of this shape, instead of --hidden")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--bf16", action="store_true", help="weights in bfloat16")
    options.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = options.parse_args(argv)
    check_places(options, arguments)
    if arguments.only:
        return report(arguments, measure(arguments.only, arguments))
    dataset, _ = prepared(arguments.run)
    print(f"{machine()}; {len(dataset.train):,} histories, {len(dataset.catalog):,} items; {vars(arguments)}", flush=True)
    flags = ["--bf16"] if arguments.bf16 else []
    for name in ("examples", "stride", "hidden", "micro", "row_tokens", "padded_micro", "packed_tokens", "seconds", "device"):
        flags += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    for name in ("run", "model"):
        flags += [f"--{name}", str(getattr(arguments, name))] if getattr(arguments, name) else []
    sides = [side for side in SIDES if side in ("ours", "padded", *arguments.sides)]
    ended: dict[str, dict[str, Any]] = {}

    def keep(side: str, figures: dict[str, Any]) -> None:
        """Print and write a side's figures before the next one ends."""
        ended[side] = figures
        print(f"{side}: {figures['seconds']:.3g} s, {figures['tokens']:,} tokens, {figures['peak']:.2f} GB", flush=True)
        write_json(arguments.out, {"sides": ended})

    found = alternate(__file__, sides, flags, arguments.repeats, arguments.device == "cuda", keep)
    write_json(arguments.out, {"sides": {side: figures for side, (figures, _) in found.items()}})
    ours = found["ours"][0]
    print(f"Tokens of the examples one by one: {ours['given']:,.0f}; loss {ours['loss']:.6f}")
    rows = []
    for side, (figures, _) in found.items():
        fewer, faster = figures["tokens"] / ours["tokens"], figures["seconds"] / ours["seconds"]
        error = f"{apart(found[side], found['padded'], 0.1 if arguments.bf16 else 1e-4):.1e}"
        memory = f"{figures['peak']:.2f} ({figures['loaded']:.2f})"
        rows.append([side, figures["tokens"], fewer, figures["seconds"], faster, memory, error])
    header = ["side", "tokens", "/ ours", "seconds", "/ ours", "peak GB (before)", "gradient, relative to padded"]
    table(header, rows)


if __name__ == "__main__":
    main()
