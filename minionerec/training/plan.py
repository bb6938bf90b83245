"""The plan of a training: parameters, steps, tokens, FLOPs and memory of each process, estimated before the first step.

Memory of a process, in bytes. P is the number of all parameters, T of those that train, N of processes; w the bytes of a stored
weight, V the vocabulary, m the parameters of the body, which is all but the embedding and the head. Sums over parameters use
the width of each.

- One process: weights wP, gradients wT, AdamW's two moments 2wT. DDP adds wT: torch copies gradients into buckets unless
  `gradient_as_bucket_view` is set, and Trainer does not set it. Under bf16 autocast the weights stay float32, and a step also
  holds their bfloat16 copies, 2(m + V's head).
- ZeRO-2 (Rajbhandari et al., 2020, section 5.2, "P_os+g"): in bf16 2P + (2 + 12)T/N, for weights, gradients, and the float32
  master weights with both moments; in float32 4P + (4 + 12)T/N, because DeepSpeed keeps a master copy there too. To this comes
  its reduction bucket of 5e8 elements (`reduce_bucket_size`), or of all that trains if that is less.
- A frozen reference model (RL with KL): its weights.
- Activations of one micro-batch: what autograd keeps, per layer and position, of a decoder layer with RMSNorm, rotary sdpa
  attention and a gated feed-forward layer. With width h, total width of the heads d, a heads, feed-forward width i and row
  length l these are in float32 4(6h + 4d + 4i + 2 + a + l) bytes; under autocast 26h + 8d + 8i + 8 + 4a + 2l; with bf16 weights
  (ZeRO-2) the same with 16h in place of 26h. This is the count of Korthikanti et al., 2022, section 4.1, for these layers and
  without dropout; tests compare it with what torch saves. With gradient checkpointing each layer keeps only its input, and the
  activations of one layer exist at a time.
- Logits: only positions that predict a label are projected. In the backward pass four float32 matrices (labels, V) exist at
  once: logits, scaled logits, their gradient, and the softmax; in bf16 also the logits in half that width.
- SID rows that train alone or with LoRA: PEFT's trainable tokens write them into a copy of the matrix in each forward pass, and
  the copy's gradient is dense. These are two more matrices (V, h), as wide as the weights (measured, tied or not).
- Rollouts (RL): in bf16 a copy of the model in bfloat16 is asked for them, 2P, unless DeepSpeed has cast the model: autocast
  covers the training passes, not the decoder.
- Validations by a ranking metric: in a shorter format (`eval.dtype`) they ask a copy of the model in it, which rollouts in
  bfloat16 ask, too, if it is bfloat16.
- Searches of rollouts and validations: keys and values of prompts and beams, 2 x layers x key-value width per position. If they
  normalise over the vocabulary, also logits, as wide as the weights that are asked, and their float32 log-probabilities, of as
  many rows as there are beams, or as are computed at once (`tree.prompt_cache`). One search follows the other, so the larger
  one counts. But what is recorded as CUDA graphs (beams on a GPU, unless `eval.cuda_graphs` is off) stays in the graphs' pool
  from the first search on: then both count, unless both are recorded and ask one model, whose graphs have one pool.
- What is mixed into validations, for every prompt and SID: of a cache (`mixture.validation`) three numbers of 8 bytes, as it is
  asked for, times its share and its logarithm, and that in 4 bytes; of the model's second distribution (`model.text_output`) as
  many; of both, while they are added, six of 8 bytes and one of 4 (tests count them). What is recorded as CUDA graphs reads a
  cache from a tensor of its own, of 8 bytes.

FLOPs (Kaplan et al., 2020, section 2.1): 2 per parameter and position in the forward pass, 4 in the backward pass, or 2 if the
weights are frozen (where PEFT trains rows of the head, the gradient of all its rows is computed). Recomputed activations add 2.
The head counts at predicting positions only. Tree masks are dense, so attention adds 4 x l x d per layer and position in the
forward pass (Chowdhery et al., 2022, appendix B).

Left out: the context of CUDA and NCCL (about 1 GB), workspaces of kernels, fragmentation (often a tenth), dropout masks, LoRA's
own activations, those of searches, and that a graph's batch and prompts are rounded up (by an eighth each). Frozen matrices
keep less than is counted here. FLOPs of a run are estimated from a sample of its micro-batches; memory is the highest of a few
micro-batches: of the longest units, of the most labels, and in between.
"""

import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from minionerec.config import Config
from minionerec.config.evaluation import Dtype
from minionerec.distributed import distributed_state, is_main_process
from minionerec.training.rounded_copy import copy_bytes
from minionerec.tree.architecture import Widths
from minionerec.tree.leaf_component import leaf_model
from minionerec.tree.prompt_cache import held_logits

_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size (elements)
_SAMPLE = 16  # micro-batches that are packed to estimate a run's positions
# A label takes as much memory as some tens of positions. How many depends on the model, so several numbers are tried.
_POSITIONS_PER_LABEL = (0, 1, 10, 100, 1000)
# Bytes per prompt and SID of what is mixed into searches, by whether a cache is, and the model's own second distribution.
_MIXED_IN = {(False, False): 0, (True, False): 3 * 8 + 4, (False, True): 3 * 8 + 4, (True, True): 6 * 8 + 4}


@dataclass(frozen=True)
class Shape:
    """The sizes of a causal LM that decide time and memory.

    Attributes:
        parameters, trainable: counts; a tied matrix counts once.
        weight_bytes, trainable_bytes: bytes of all weights, and of the trainable ones, as they are stored.
        body, trainable_body: counts of the parameters outside the embedding and the head.
        embedding: parameters of the embedding, its rows times its width.
        token_rows: whether single rows of the embedding and the head train, through PEFT.
        hidden, heads_width, heads, key_value_width, intermediate, layers, vocabulary: widths and counts of the decoder.
    """

    parameters: int
    trainable: int
    weight_bytes: int
    trainable_bytes: int
    body: int
    trainable_body: int
    embedding: int
    token_rows: bool
    hidden: int
    heads_width: int
    heads: int
    key_value_width: int
    intermediate: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Shape":
        """The sizes of a model. It may be on the meta device or wrapped by PEFT."""
        config = model.config.get_text_config(decoder=True)
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        outer = {id(parameter) for module in ends if module is not None for parameter in module.parameters()}
        everything = list(model.parameters())
        free = [parameter for parameter in everything if parameter.requires_grad]
        embedding = cast(torch.nn.Embedding, model.get_input_embeddings())
        widths = Widths.of(config)
        return cls(
            parameters=sum(parameter.numel() for parameter in everything),
            trainable=sum(parameter.numel() for parameter in free),
            weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in everything),
            trainable_bytes=sum(parameter.numel() * parameter.element_size() for parameter in free),
            body=sum(parameter.numel() for parameter in everything if id(parameter) not in outer),
            trainable_body=sum(parameter.numel() for parameter in free if id(parameter) not in outer),
            embedding=embedding.weight.numel(),
            token_rows=any(hasattr(module, "trainable_tokens_delta") for module in model.modules()),
            hidden=config.hidden_size,
            heads_width=widths.attention,
            heads=widths.heads,
            key_value_width=widths.key_value,
            intermediate=widths.feed_forward,
            layers=config.num_hidden_layers,
            vocabulary=embedding.weight.shape[0],
        )


@dataclass(frozen=True)
class PackedShape:
    """The shape of a packed micro-batch: rows, their length (tokens, padding included), and positions that predict a label."""

    rows: int
    length: int
    predicting: int

    @classmethod
    def of(cls, packed: Mapping[str, Any]) -> "PackedShape":
        """The shape of a micro-batch, given the tensors of its `TreeBatch` by name."""
        rows, length = packed["input_ids"].shape
        return cls(rows, length, int(packed["predicting"].sum()))

    @property
    def positions(self) -> int:
        """Positions that the model computes."""
        return self.rows * self.length


@dataclass(frozen=True)
class Validation:
    """What validations by a ranking metric hold beside the training.

    Attributes:
        copy: bytes of a rounded copy of the model that they ask; 0 if they ask the model itself.
        dtype: of the copy.
        width: bytes of a number of the model that they ask.
        positions: that the key-value cache of a batch holds.
        head_rows: rows of logits over the vocabulary that a batch needs at most; 0 if it normalises over the catalog.
        graphs: whether beams on a GPU are recorded as CUDA graphs (`eval.cuda_graphs`), those of rollouts, too.
        mixed_in: bytes of what is mixed into the model's distribution; 0 if nothing is.
        mixed_again: bytes of the tensor from which recorded searches read a cache; 0 without one.
    """

    copy: int
    dtype: Dtype
    width: int
    positions: int
    head_rows: int
    graphs: bool = True
    mixed_in: int = 0
    mixed_again: int = 0

    @classmethod
    def of(cls, config: Config, model: PreTrainedModel, longest: int, sids: tuple[int, int]) -> "Validation":
        """Those of a model, which may be on the meta device.

        Args:
            longest: tokens of the longest prompt.
            sids: how many there are at most, and the levels of one; a last code is not read.
        """
        lists, (count, levels) = config.eval, sids
        copy, batch, beams = copy_bytes(model, lists.dtype), lists.batch_size, lists.num_beams
        width = (getattr(torch, lists.dtype) if copy else model.dtype).itemsize
        head_rows = batch * beams if lists.normalise_over == "vocabulary" else 0
        positions = batch * (longest + beams * (levels - 1))
        mixed_in = batch * count * _MIXED_IN[config.mixture.validation, leaf_model(model) is not None]
        mixed_again = batch * count * 8 * config.mixture.validation
        return cls(copy, lists.dtype, width, positions, head_rows, lists.by_graphs, mixed_in, mixed_again)


@dataclass(frozen=True)
class Work:
    """What a training has to compute.

    Attributes:
        unit: what a batch consists of, `trees` or `prompts`.
        units: how many the training set has.
        steps: optimiser steps.
        micro: units computed at once on one device.
        accumulation: micro-batches per step and device.
        tokens, labels: of all examples of one epoch; each example counts whole, whatever it shares with others.
        sample: shapes of some random micro-batches.
        largest: shapes of micro-batches one of which takes the most memory.
        rollout: positions that rollouts compute per micro-batch, prompts included; if groups are refilled, at most.
        cached: positions that the key-value cache of rollouts holds at once.
        reference: whether a frozen reference model of the same size is computed too.
        head_rows: rows of logits over the vocabulary that rollouts need at once at most; 0 if they normalise over the catalog.
        beams: whether rollouts are plain beams, which a GPU records as CUDA graphs; draws are not.
        validation: by a ranking metric; None without.
        tasks: counts of examples and tokens by task; empty if a training does not count by task.
    """

    unit: str
    units: int
    steps: int
    micro: int
    accumulation: int
    tokens: int
    labels: int
    sample: tuple[PackedShape, ...]
    largest: tuple[PackedShape, ...]
    rollout: int = 0
    cached: int = 0
    reference: bool = False
    head_rows: int = 0
    beams: bool = True
    validation: Validation | None = None
    tasks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row among the micro-batches that were packed for the plan."""
        return max(shape.length for shape in (*self.sample, *self.largest))


def sample_batches(
    units: Sequence[Any],
    sizes: Sequence[int],
    micro: int,
    pack: Callable[[list[Any]], PackedShape],
    seed: int,
    labels: Sequence[int] | None = None,
) -> tuple[tuple[PackedShape, ...], tuple[PackedShape, ...]]:
    """Shapes of some micro-batches, drawn at random as training draws them, and of the micro-batches of the costliest units.

    Args:
        sizes: tokens of each unit.
        micro: units per micro-batch.
        pack: gives the shape of a micro-batch of these units.
        labels: labels of each unit; None if all units have equally many.
    """
    order = list(range(len(units)))
    random.Random(seed).shuffle(order)
    starts = range(0, max(len(order) - micro + 1, 1), micro)[:_SAMPLE]
    sample = tuple(pack([units[unit] for unit in order[start : start + micro]]) for start in starts)
    largest: dict[tuple[int, ...], PackedShape] = {}
    for weight in (0,) if labels is None else _POSITIONS_PER_LABEL:
        costs = sizes if labels is None else [size + weight * count for size, count in zip(sizes, labels, strict=True)]
        costliest = tuple(sorted(order, key=lambda unit: -costs[unit])[:micro])
        if costliest not in largest:
            largest[costliest] = pack([units[unit] for unit in costliest])
    return sample, tuple(largest.values())


@dataclass(frozen=True)
class Devices:
    """The devices of a training and how it is distributed over them.

    Attributes:
        count: one process runs on each.
        zero2: DeepSpeed's ZeRO-2, otherwise DDP; on a single device ZeRO-2 only adds master weights.
        bf16: whether it computes in bfloat16.
        checkpointing: whether the backward pass computes activations again.
        gpus: whether they are GPUs.
    """

    count: int = 1
    zero2: bool = False
    bf16: bool = False
    checkpointing: bool = False
    gpus: bool = False

    @property
    def name(self) -> str:
        """For display."""
        if self.count == 1 and not self.zero2:
            return "1 device"
        return f"{self.count} device{'s' * (self.count > 1)}, {'ZeRO-2' if self.zero2 else 'DDP'}"


def launched(bf16: bool, checkpointing: bool) -> Devices:
    """The devices of this launch. DeepSpeed means ZeRO-2: training refuses its other stages."""
    zero2 = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    state = distributed_state()
    return Devices(state.num_processes, zero2, bf16, checkpointing, state.device.type == "cuda")


def planned_devices(count: int | None, bf16: bool, checkpointing: bool) -> list[Devices]:
    """What a dry run plans for: `count` GPUs, under ZeRO-2 and again under DDP; None for the devices of this launch."""
    if count is None:
        return [launched(bf16, checkpointing)]
    return [Devices(count, zero2, bf16, checkpointing, gpus=True) for zero2 in ((True, False) if count > 1 else (False,))]


def casts(devices: Devices) -> bool:
    """Whether weights and gradients are bfloat16 themselves: DeepSpeed casts the model."""
    return devices.bf16 and devices.zero2


def gradient_bytes(shape: Shape, devices: Devices) -> int:
    """Bytes of all gradients, before they are shared out over the devices."""
    return 2 * shape.trainable if casts(devices) else shape.trainable_bytes


def memory(shape: Shape, work: Work, devices: Devices) -> dict[str, int]:
    """Bytes of one process by what they hold; the header of this file derives them."""
    weights = 2 * shape.parameters if casts(devices) else shape.weight_bytes
    trained = gradient_bytes(shape, devices)
    parts = {"weights": weights}
    if devices.zero2:
        parts["gradients"] = -(-trained // devices.count)
        parts["optimizer"] = -(-12 * shape.trainable // devices.count)
        parts["reduction bucket"] = min(_BUCKET, shape.trainable) * (trained // max(shape.trainable, 1))
    else:
        parts["gradients"], parts["optimizer"] = trained, 2 * trained
        if devices.count > 1:
            parts["reduction bucket"] = trained
        if devices.bf16:
            parts["bfloat16 copies"] = 2 * (shape.body + shape.embedding)
    if work.reference:
        parts["reference model"] = weights
    validation = work.validation
    if validation is not None and validation.copy:
        parts["rounded copy for validations"] = validation.copy
    if shape.token_rows:
        parts["copies for SID rows"] = 2 * shape.embedding * (weights // shape.parameters)
    largest = max(work.largest, key=lambda batch: _activations(shape, batch, devices) + _logits(shape, batch, devices))
    parts["activations"], parts["logits"] = _activations(shape, largest, devices), _logits(shape, largest, devices)
    own_copy = "bfloat16" if devices.bf16 and not casts(devices) else None  # that rollouts ask; None if they ask the model
    one_model = validation is not None and own_copy == (validation.dtype if validation.copy else None)
    searches = []
    if work.cached:
        if own_copy and not one_model:
            parts["rounded copy for rollouts"] = 2 * shape.parameters
        searches.append(_search(shape, devices, 2 if devices.bf16 else 4, work.cached, work.head_rows))
    if validation is not None:
        asked = 2 if casts(devices) else validation.width
        searches.append(_search(shape, devices, asked, validation.positions, validation.head_rows))
        if not (devices.gpus and _stay_apart(work, validation, one_model)):
            searches = [max(searches, key=sum)]
    if searches:
        keys_and_values, logits_of_searches = map(sum, zip(*searches, strict=True))
        parts["keys and values of searches"] = keys_and_values
        if logits_of_searches:
            parts["logits of searches"] = logits_of_searches
    if validation is not None and validation.mixed_in:
        again = validation.mixed_again if devices.gpus and validation.graphs else 0
        parts["what is mixed into searches"] = validation.mixed_in + again
    return parts


def _stay_apart(work: Work, validation: Validation, one_model: bool) -> bool:
    """Whether the memory of rollouts' searches and of validations' is taken side by side on a GPU, since graphs keep theirs."""
    return validation.graphs and not (one_model and work.beams)


def _search(shape: Shape, devices: Devices, width: int, positions: int, rows: int) -> tuple[int, int]:
    """Bytes of a search's keys and values, and of its logits over the vocabulary with their log-probabilities.

    Args:
        width: bytes of a number of the model that is asked.
        positions: that the key-value cache holds.
        rows: of logits, at most.
    """
    logits = held_logits(rows, shape.vocabulary, devices.gpus) * (width + 4) if rows else 0
    return positions * 2 * shape.layers * shape.key_value_width * width, logits


def _activations(shape: Shape, batch: PackedShape, devices: Devices) -> int:
    h, d, i = shape.hidden, shape.heads_width, shape.intermediate  # the symbols of the header
    if not devices.bf16:
        layer = 4 * (6 * h + 4 * d + 4 * i + 2 + shape.heads + batch.length)
    else:
        layer = (16 if devices.zero2 else 26) * h + 8 * d + 8 * i + 8 + 4 * shape.heads + 2 * batch.length
    if devices.checkpointing:
        stream = 2 if casts(devices) else 4  # autocast keeps the residual stream in float32
        return batch.positions * (shape.layers * stream * h + layer)
    return batch.positions * shape.layers * layer


def _logits(shape: Shape, batch: PackedShape, devices: Devices) -> int:
    return batch.predicting * shape.vocabulary * (16 + (2 if devices.bf16 else 0))


def flops(shape: Shape, batch: PackedShape, work: Work, devices: Devices) -> int:
    """Floating-point operations of one micro-batch: forward and backward pass, reference model and rollouts."""
    attention = 4 * batch.length * shape.heads_width * shape.layers * batch.positions
    forward = 2 * shape.body * batch.positions + attention + 2 * shape.embedding * batch.predicting
    inputs = forward  # the gradient of each layer's input
    weights = 2 * shape.trainable_body * batch.positions + attention  # both operands of attention have a gradient
    if shape.token_rows or shape.trainable - shape.trainable_body >= shape.embedding:  # the head trains, in part or whole
        weights += 2 * shape.embedding * batch.predicting
    again = forward if devices.checkpointing else 0
    reference = forward if work.reference else 0
    rollout = 2 * shape.body * work.rollout
    return forward + inputs + weights + again + reference + rollout


@dataclass(frozen=True)
class Plan:
    """What a training takes on some devices.

    Attributes:
        stage: `sft` or `rl`.
        disk: bytes that the stage writes at most: checkpoints and models.
    """

    stage: str
    shape: Shape
    work: Work
    devices: Devices
    disk: int

    @property
    def positions(self) -> int:
        """Positions that the whole run computes, estimated from the sample."""
        batches = self.work.sample
        return round(self._micro_batches * sum(batch.positions for batch in batches) / len(batches))

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole run over all devices, estimated from the sample."""
        batches = self.work.sample
        each = [flops(self.shape, batch, self.work, self.devices) for batch in batches]
        return self._micro_batches * sum(each) / len(each)

    @property
    def _micro_batches(self) -> int:
        return self.work.steps * self.work.accumulation * self.devices.count

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of one process by what they hold."""
        return memory(self.shape, self.work, self.devices)

    @property
    def memory_per_process(self) -> int:
        """The bytes of one process."""
        return sum(self.memory.values())

    def metrics(self) -> dict[str, int | float]:
        """What the run was expected to take, for its manifest."""
        return {
            "tokens": self.work.tokens,
            "labels": self.work.labels,
            "planned_flops": self.flops,
            "planned_memory": self.memory_per_process,
        }

    def table(self, gpu_memory: float | None = None, further: Sequence[tuple[str, str]] = ()) -> Table:
        """The plan for display.

        Args:
            gpu_memory: memory of one device (GB), to say whether the training fits; None says nothing about it.
            further: names and values of rows at the end.
        """
        shape, work, devices = self.shape, self.work, self.devices
        table = Table(title=f"Plan of {self.stage} on {devices.name}", title_justify="left", show_header=False, min_width=60)
        table.add_column("")
        table.add_column("", justify="right")
        precision = "bf16" if devices.bf16 else "float32"
        share = 100 * shape.trainable / shape.parameters
        rows = [
            ("parameters", f"{shape.parameters:,}"),
            ("trainable", f"{shape.trainable:,} ({share:.3g} %)"),
            ("precision", precision + (", gradient checkpointing" if devices.checkpointing else "")),
            (work.unit, f"{work.units:,}"),
            ("optimiser steps", f"{work.steps:,}"),
            (
                f"{work.unit} per step",
                f"{work.micro * work.accumulation * devices.count:,} = {devices.count} x {work.accumulation} x {work.micro}",
            ),
            *((f"  {task}", _examples(counts)) for task, counts in work.tasks.items()),
            ("tokens per epoch", f"{work.tokens:,}"),
            ("labels per epoch", f"{work.labels:,}"),
            ("positions of the run (estimate)", f"{self.positions:,}"),
            ("FLOPs of the run (estimate)", f"{self.flops:.3g}"),
        ]
        for row in rows:
            table.add_row(*row)
        table.add_section()
        for name, size in self.memory.items():
            table.add_row(f"memory per process: {name}", gigabytes(size))
        table.add_row("[bold]memory per process (estimate)[/]", f"[bold]{gigabytes(self.memory_per_process)}[/]")
        if gpu_memory is not None:
            table.add_row(f"of {gpu_memory:g} GB", self.verdict(gpu_memory))
        table.add_section()
        for name, value in (("disk of the run's folder, at most", gigabytes(self.disk)), *further):
            table.add_row(name, value)
        return table

    def show(self, gpu_memory: float | None = None, further: Sequence[tuple[str, str]] = ()) -> None:
        """Print the table, on the main process; see `table`."""
        if is_main_process():
            console = Console(emoji=False, width=None if sys.stdout.isatty() else 120, highlight=False)
            console.print(self.table(gpu_memory, further))

    def verdict(self, gpu_memory: float) -> str:
        """Whether the training fits into a device of `gpu_memory` GB, a tenth of which is for what the estimate leaves out."""
        if self.memory_per_process <= 0.9 * gpu_memory * 1e9:
            return "fits"
        if self.memory_per_process <= gpu_memory * 1e9:
            return "tight: less than a tenth is left"
        return "does not fit"


def gigabytes(size: int) -> str:
    """Bytes for display, in GB (1e9)."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"


def _examples(counts: Mapping[str, int]) -> str:
    cut = f", {counts['truncated']:,} truncated" if counts.get("truncated") else ""
    return f"{counts['examples']:,} examples, {counts['tokens']:,} tokens{cut}"
