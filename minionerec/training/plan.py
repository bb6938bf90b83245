"""The plan of a training: parameters, steps, tokens, FLOPs and memory per rank, known before the first step.

Memory of a rank, in bytes. P are all parameters, T those that train, N the ranks, w the bytes of a stored weight, V the
vocabulary, m the matrices of the body; sums over parameters take each parameter's own width.

- alone: weights wP, gradients wT, AdamW's two moments 2wT. Under DDP another wT: torch copies gradients into buckets unless
  `gradient_as_bucket_view` is set, which Trainer leaves off. With bf16 autocast the weights stay float32 and their bfloat16
  copies, 2(m + V's head), live as long as the step.
- ZeRO-2 (Rajbhandari et al., 2020, section 5.2, "P_os+g"): in bf16 2P + (2 + 12)T/N: weights, gradients, and the float32 master
  weights with both moments; in float32 4P + (4 + 12)T/N, for DeepSpeed keeps a master copy there too. Beside them its reduction
  bucket of 5e8 elements (`reduce_bucket_size`), at most one gradient of all that trains.
- a frozen reference model (RL with KL): its weights again.
- activations of one micro-batch, per layer and position, what autograd keeps of a decoder layer with RMSNorm, rotary sdpa
  attention and a gated feed-forward layer (the count of Korthikanti et al., 2022, section 4.1, for these layers and without
  dropout; tests hold it against what torch saves): with width h, heads' total width d, a heads, feed-forward width i, row
  length l: float32 4(6h + 4d + 4i + 2 + a + l); autocast 26h + 8d + 8i + 8 + 4a + 2l; bf16 weights (ZeRO-2) 16h instead of
  26h. Under gradient checkpointing each layer keeps its input only, and one layer's activations are there at a time.
- logits: only positions that predict a label are projected; four float32 matrices (labels, V) are alive at once in the backward
  pass (logits, scaled logits, their gradient, the softmax in making), in bf16 the half-width logits as well.
- SID rows alone, or with LoRA: PEFT's trainable tokens write them into a copy of the matrix in each forward pass, and its
  gradient is dense: two matrices (V, h) more at once, as wide as the weights (measured, tied or not).
- rollouts (RL): keys and values of prompts and beams, 2 x layers x key-value width.

FLOPs (Kaplan et al., 2020, section 2.1): 2 a parameter and position forwards, 4 backwards, of which half for weights that are
frozen (where PEFT trains rows of the head, the gradient of all its rows is computed); 2 more where activations are computed
again; the head only on predicting positions; attention 4 x l x d a layer and position forwards (Chowdhery et al., 2022,
appendix B), tree masks being dense.

Left out: the context of CUDA and NCCL (about 1 GB), workspaces of kernels, fragmentation (often a tenth), dropout masks,
LoRA's own activations, evaluation. Frozen matrices keep less than is counted here. What a run computes is estimated from a
sample of its micro-batches; memory from the most demanding of some: of the longest units, of the most labels, and in between.
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

from minionerec.distributed import distributed_state, is_main_process

_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size (elements)
_SAMPLE = 16  # micro-batches that are packed to estimate a run's positions
_PER_LABEL = (0, 1, 10, 100, 1000)  # positions that a label may weigh: by activations and vocabulary, some tens
_WIDTH = {True: 2, False: 4}  # bytes of a number in bf16 or not


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal LM that decide time and memory.

    Attributes:
        parameters, trainable: counts; a tied matrix counts once.
        weight_bytes, trainable_bytes: of the weights as they are stored.
        body, trainable_body: parameters outside the embedding and the head.
        embedding: rows of the vocabulary times the width.
        token_rows: whether rows of the embedding and the head train through PEFT.
        hidden, heads_width, heads, key_value_width, intermediate, layers, vocabulary: of the decoder.
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
        """Those of a model, which may be on the meta device or wrapped by PEFT."""
        config = model.config.get_text_config()
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        outer = {id(parameter) for module in ends if module is not None for parameter in module.parameters()}
        everything = list(model.parameters())
        free = [parameter for parameter in everything if parameter.requires_grad]
        embedding = cast(torch.nn.Embedding, model.get_input_embeddings())
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
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
            heads_width=heads * head,
            heads=heads,
            key_value_width=(getattr(config, "num_key_value_heads", None) or heads) * head,
            intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            layers=config.num_hidden_layers,
            vocabulary=embedding.weight.shape[0],
        )


@dataclass(frozen=True)
class PackedShape:
    """What one packed micro-batch holds: rows, their length (tokens, padding included), and positions that predict a label."""

    rows: int
    length: int
    predicting: int

    @classmethod
    def of(cls, packed: Mapping[str, Any]) -> "PackedShape":
        """Those of a `TreeBatch`'s tensors."""
        rows, length = packed["input_ids"].shape
        return cls(rows, length, int(packed["predicting"].sum()))

    @property
    def positions(self) -> int:
        """Positions that the model computes."""
        return self.rows * self.length


@dataclass(frozen=True)
class Work:
    """What a training goes through.

    Attributes:
        unit: what a batch consists of, `trees` or `prompts`.
        units: of them in the training set.
        steps: optimiser steps.
        micro: units at once on one device.
        accumulation: micro-batches per step and device.
        tokens, labels: tokens of all examples of one epoch, each example whole, and those of them that are labels.
        sample: some micro-batches.
        largest: micro-batches of which one takes the most memory.
        rollout: positions generated per micro-batch, prompts with them, 0 where nothing is; where groups are refilled, at most.
        cached: of them, those held in the key-value cache at once.
        reference: a frozen model of the same size is computed beside.
        tasks: examples and tokens by task, where they are told apart.
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
    tasks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def sample_batches(
    units: Sequence[Any],
    sizes: Sequence[int],
    micro: int,
    pack: Callable[[list[Any]], PackedShape],
    seed: int,
    labels: Sequence[int] | None = None,
) -> tuple[tuple[PackedShape, ...], tuple[PackedShape, ...]]:
    """Micro-batches drawn at random as training draws them, and those of the largest units, whatever a label weighs.

    Args:
        sizes: tokens of each unit.
        labels: labels of each; None where all have the same number.
    """
    order = list(range(len(units)))
    random.Random(seed).shuffle(order)
    starts = range(0, max(len(order) - micro + 1, 1), micro)[:_SAMPLE]
    sample = tuple(pack([units[place] for place in order[start : start + micro]]) for start in starts)
    largest: dict[tuple[int, ...], PackedShape] = {}
    for weight in (0,) if labels is None else _PER_LABEL:
        costs = sizes if labels is None else [size + weight * count for size, count in zip(sizes, labels, strict=True)]
        chosen = tuple(sorted(order, key=lambda place: -costs[place])[:micro])
        if chosen not in largest:
            largest[chosen] = pack([units[place] for place in chosen])
    return sample, tuple(largest.values())


@dataclass(frozen=True)
class Devices:
    """Where a training runs; `zero2` needs `count` above 1 to differ from DDP by more than its master weights."""

    count: int = 1
    zero2: bool = False
    bf16: bool = False
    checkpointing: bool = False

    @property
    def name(self) -> str:
        """For readers."""
        if self.count == 1 and not self.zero2:
            return "1 device"
        return f"{self.count} device{'s' * (self.count > 1)}, {'ZeRO-2' if self.zero2 else 'DDP'}"


def launched(bf16: bool, checkpointing: bool) -> Devices:
    """Those that this process was started on; DeepSpeed is ZeRO-2, as in the launcher files that ship."""
    zero2 = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    return Devices(distributed_state().num_processes, zero2, bf16, checkpointing)


def planned_devices(count: int | None, bf16: bool, checkpointing: bool) -> list[Devices]:
    """Those of a dry run: as it was started where no number is given; else so many under ZeRO-2 and, beside it, DDP."""
    if count is None:
        return [launched(bf16, checkpointing)]
    return [Devices(count, zero2, bf16, checkpointing) for zero2 in ((True, False) if count > 1 else (False,))]


def memory(shape: Shape, work: Work, devices: Devices) -> dict[str, int]:
    """Bytes of one rank by what they are for; see the file's header."""
    half = devices.bf16 and devices.zero2  # DeepSpeed casts the model itself
    weights = 2 * shape.parameters if half else shape.weight_bytes
    trained = 2 * shape.trainable if half else shape.trainable_bytes
    found = {"weights": weights}
    if devices.zero2:
        found["gradients"] = -(-trained // devices.count)
        found["optimizer"] = -(-12 * shape.trainable // devices.count)
        found["reduction bucket"] = min(_BUCKET, shape.trainable) * (trained // max(shape.trainable, 1))
    else:
        found["gradients"], found["optimizer"] = trained, 2 * trained
        if devices.count > 1:
            found["reduction bucket"] = trained
        if devices.bf16:
            found["bfloat16 copies"] = 2 * (shape.body + shape.embedding)
    if work.reference:
        found["reference model"] = weights
    width = _WIDTH[devices.bf16]
    if shape.token_rows:
        found["copies for SID rows"] = 2 * shape.embedding * (weights // shape.parameters)
    largest = max(work.largest, key=lambda batch: _activations(shape, batch, devices) + _logits(shape, batch, devices))
    found["activations"], found["logits"] = _activations(shape, largest, devices), _logits(shape, largest, devices)
    if work.cached:
        found["rollouts"] = work.cached * 2 * shape.layers * shape.key_value_width * width
    return found


def _activations(shape: Shape, batch: PackedShape, devices: Devices) -> int:
    h, d, i = shape.hidden, shape.heads_width, shape.intermediate
    if not devices.bf16:
        layer = 4 * (6 * h + 4 * d + 4 * i + 2 + shape.heads + batch.length)
    else:
        layer = (16 if devices.zero2 else 26) * h + 8 * d + 8 * i + 8 + 4 * shape.heads + 2 * batch.length
    if devices.checkpointing:
        stream = 2 if devices.bf16 and devices.zero2 else 4  # autocast keeps the residual stream in float32
        return batch.positions * (shape.layers * stream * h + layer)
    return batch.positions * shape.layers * layer


def _logits(shape: Shape, batch: PackedShape, devices: Devices) -> int:
    return batch.predicting * shape.vocabulary * (16 + (2 if devices.bf16 else 0))


def flops(shape: Shape, batch: PackedShape, work: Work, devices: Devices) -> int:
    """Floating-point operations of one micro-batch, forwards and backwards, over all its passes."""
    attention = 4 * batch.length * shape.heads_width * shape.layers * batch.positions
    forward = 2 * shape.body * batch.positions + attention + 2 * shape.embedding * batch.predicting
    inputs = forward  # the gradient of each layer's input
    weights = 2 * shape.trainable_body * batch.positions + attention  # attention's second operand has one as well
    if shape.token_rows or shape.trainable - shape.trainable_body >= shape.embedding:  # the head has a gradient
        weights += 2 * shape.embedding * batch.predicting
    again = forward if devices.checkpointing else 0
    reference = forward if work.reference else 0
    rollout = 2 * shape.body * work.rollout
    return forward + inputs + weights + again + reference + rollout


@dataclass(frozen=True)
class Plan:
    """A training on some devices."""

    stage: str
    shape: Shape
    work: Work
    devices: Devices

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
        """See `memory`."""
        return memory(self.shape, self.work, self.devices)

    @property
    def memory_per_rank(self) -> int:
        """All of it, in bytes."""
        return sum(self.memory.values())

    def metrics(self) -> dict[str, int | float]:
        """For a manifest: what the run was expected to take."""
        return {
            "tokens": self.work.tokens,
            "labels": self.work.labels,
            "planned_flops": self.flops,
            "planned_memory": self.memory_per_rank,
        }

    def table(self, gpu_memory: float | None = None) -> Table:
        """For readers.

        Args:
            gpu_memory: of one device (GB), to say whether it fits.
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
            ("tokens per epoch, examples whole", f"{work.tokens:,}"),
            ("labels per epoch", f"{work.labels:,}"),
            ("positions of the run (estimate)", f"{self.positions:,}"),
            ("FLOPs of the run (estimate)", f"{self.flops:.3g}"),
        ]
        for row in rows:
            table.add_row(*row)
        table.add_section()
        for name, size in self.memory.items():
            table.add_row(f"memory per rank: {name}", gigabytes(size))
        table.add_row("[bold]memory per rank (estimate)[/]", f"[bold]{gigabytes(self.memory_per_rank)}[/]")
        if gpu_memory is not None:
            table.add_row(f"of {gpu_memory:g} GB", self.verdict(gpu_memory))
        return table

    def show(self, gpu_memory: float | None = None) -> None:
        """Print the table, on the main process."""
        if is_main_process():
            Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(self.table(gpu_memory))

    def verdict(self, gpu_memory: float) -> str:
        """Whether it fits into a device of so many GB, with a tenth left for what the estimate leaves out."""
        if self.memory_per_rank <= 0.9 * gpu_memory * 1e9:
            return "fits"
        if self.memory_per_rank <= gpu_memory * 1e9:
            return "tight: less than a tenth is left"
        return "does not fit"


def gigabytes(size: int) -> str:
    """Bytes for readers, in GB (1e9)."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"


def _examples(counts: Mapping[str, int]) -> str:
    cut = f", {counts['truncated']:,} truncated" if counts.get("truncated") else ""
    return f"{counts['examples']:,} examples, {counts['tokens']:,} tokens{cut}"
