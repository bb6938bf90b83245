"""Training time per epoch of the baselines that compute no padding, against full-length batches of the same rows.

Claim: at least twice the speed of a straightforward implementation, in which every history takes a row of `max_history`, with
the same loss at every step. There are two peers: torch's `nn.TransformerEncoder` with SASRec's weights, and for every model its
own layers on padded batches with all cells of all layers computed (for GRU4Rec: the GRU over all cells).

Dropout is 0, so that losses can be compared; it would cost the full-length peers more. Each implementation runs in its own
process, one after the other, on the same random batches. Printed are the time, scaled to an epoch, and the peak memory.

    taskset -c 0 env OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/baseline_epoch.py --sequences Beauty.txt
    PYTHONPATH=. python benchmarks/baseline_epoch.py --steps 5 --users 300     # small, on made-up sequences
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from memory import peak_gb
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

from minionerec.config import BaselineConfig
from minionerec.model.sequential import make
from minionerec.model.sequential.batches import HistoryBatch, make_batch
from minionerec.model.sequential.bert4rec import BERT4Rec
from minionerec.model.sequential.gru4rec import GRU4Rec
from minionerec.model.sequential.sequential_model import SequentialModel
from minionerec.training.ranking_data import from_sequences

LENGTH, BATCH = 50, 128
MODELS = {
    "sasrec": {"model": "sasrec", "dropout": 0.0, "attention_dropout": 0.0},
    "bert4rec": {"model": "bert4rec", "dropout": 0.0, "attention_dropout": 0.0},
    "gru4rec": {"model": "gru4rec", "dropout": 0.0},
    "trm4rec vanilla B1": {"model": "trm4rec", "layers": 1},
    "trm4rec FullBP B1": {"model": "trm4rec", "layers": 1, "full_backpropagation": True},
    "trm4rec FullBP B2": {"model": "trm4rec", "layers": 2, "full_backpropagation": True},
    "hstu": {"model": "hstu", "dropout": 0.0},
}


class TorchSASRec(nn.Module):
    """SASRec by torch's encoder, causal with a key padding mask, on right-padded rows of full length."""

    def __init__(self, ours: SequentialModel) -> None:
        super().__init__()
        self.items, self.positions = ours.item_embeddings, ours.embedding.position_embeddings
        self.norm = ours.embedding.layer_norm
        layer = nn.TransformerEncoderLayer(64, 2, 256, 0.0, "gelu", 1e-12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        names = {"attn.out_proj": "self_attn.out_proj", "attn.layer_norm": "norm1", "ffn.layer_norm": "norm2"}
        names |= {"ffn.dense_1": "linear1", "ffn.dense_2": "linear2"}
        with torch.no_grad():
            for theirs, own in zip(self.encoder.layers, ours.encoder.layers, strict=True):
                projections = (own.attn.query, own.attn.key, own.attn.value)
                theirs.self_attn.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
                theirs.self_attn.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
                for source, target in names.items():
                    theirs.get_submodule(target).load_state_dict(own.get_submodule(source).state_dict())

    def forward(self, batch: HistoryBatch) -> torch.Tensor:
        """The loss of a batch."""
        x = self.norm(self.items(batch.items) + self.positions(batch.positions))
        causal = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        padding = torch.zeros_like(batch.items, dtype=x.dtype).masked_fill(batch.items == 0, -torch.inf)
        x = self.encoder(x, causal, padding, is_causal=True)
        states = x[torch.arange(len(x)), batch.lengths - 1]
        return functional.cross_entropy(states @ self.items.weight.T, batch.targets)


class EverywhereRead(nn.Module):
    """A model on a padded batch; every cell of the last layer is computed as well."""

    def __init__(self, ours: SequentialModel) -> None:
        super().__init__()
        self.ours = ours

    def states(self, batch: HistoryBatch, everywhere: torch.Tensor) -> torch.Tensor:
        """The model's states at all cells, (cells, hidden)."""
        if isinstance(self.ours, GRU4Rec):
            return self.ours.dense(self.ours.gru(self.ours.item_embeddings(batch.items))[0]).flatten(0, 1)
        return self.ours.states(batch._replace(readout=everywhere))

    def forward(self, batch: HistoryBatch) -> torch.Tensor:
        """The loss of a batch."""
        everywhere = torch.arange(batch.items.numel())
        if isinstance(self.ours, BERT4Rec):
            masked = self.ours.draw_masks(batch)
            labels = self.ours.labels(masked, batch)
            states = self.ours.filled(batch.items.masked_fill(masked, self.ours.mask_id), batch, everywhere)[labels.flatten()]
            return functional.cross_entropy(self.ours.logits(states), batch.items[labels])
        return functional.cross_entropy(self.ours.logits(self.states(batch, everywhere)[batch.readout]), batch.targets)


IMPLEMENTATIONS = {"ours": lambda ours: ours, "full length": EverywhereRead, "torch encoder": TorchSASRec}


def run_one(name: str, implementation: str, sequences: Path, steps: int) -> dict:
    """Train for some steps in this process."""
    data = from_sequences(sequences, "recbole", LENGTH)
    rows = data.rows["train"]
    torch.manual_seed(0)
    ours = make(BaselineConfig(protocol="recbole", sequences=str(sequences), max_history=LENGTH, **MODELS[name]), data.items)
    model = IMPLEMENTATIONS[implementation](ours).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    order = np.random.default_rng(0).permutation(len(rows))
    layout = ours.layout if implementation == "ours" else "padded"
    torch.manual_seed(0)  # bert4rec draws its masks; every implementation the same
    losses, wall, cpu = [], [], []
    for step in range(steps):
        began, began_cpu = time.perf_counter(), time.process_time()
        drawn = order[step * BATCH % len(order) :][:BATCH]
        loss = model(make_batch(rows.take(drawn), layout=layout, side="right", max_history=LENGTH))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    scale = -(-len(rows) // BATCH)
    warm = slice(min(3, steps - 1), None)
    return {
        "losses": losses,
        "wall": float(np.median(wall[warm])) * scale,
        "cpu": float(np.mean(cpu[warm])) * scale,
        "memory": peak_gb(),
    }


def write_sequences(path: Path, users: int) -> None:
    """Sequences with lengths like Beauty's."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(5 + rng.geometric(0.25, users), 150)
    path.write_text("".join(f"{u} {' '.join(map(str, rng.integers(1, 12102, n)))}\n" for u, n in enumerate(lengths)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=Path, help="file of sequences, such as Beauty.txt; made up if left out")
    parser.add_argument("--users", type=int, default=2000, help="users of made-up sequences")
    parser.add_argument("--steps", type=int, default=60, help="steps of each implementation")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "IMPLEMENTATION"), help="run one in this process; prints JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(*arguments.one, arguments.sequences, arguments.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        sequences = arguments.sequences or Path(folder) / "made-up.txt"
        if not arguments.sequences:
            write_sequences(sequences, arguments.users)
        table = Table(title=f"{sequences.name}: training per epoch, batches of {BATCH}, {arguments.steps} steps, dropout 0")
        for column in (
            "model",
            "implementation",
            "wall s",
            "CPU s",
            "wall / ours",
            "CPU / ours",
            "peak GB",
            "largest loss difference",
        ):
            table.add_column(column, justify="left" if column in ("model", "implementation") else "right")
        for model in arguments.models:
            ours = None
            for implementation in IMPLEMENTATIONS:
                if implementation == "torch encoder" and model != "sasrec":
                    continue
                command = [sys.executable, __file__, "--one", model, implementation, "--sequences", str(sequences)]
                process = subprocess.run(
                    [*command, "--steps", str(arguments.steps)], capture_output=True, text=True, check=True
                )
                figures = json.loads(process.stdout)
                ours = ours or figures
                difference = float(np.abs(np.subtract(ours["losses"], figures["losses"])).max())
                ratios = [f"{figures[clock] / ours[clock]:.2f}" for clock in ("wall", "cpu")]
                seconds = [f"{figures[clock]:.1f}" for clock in ("wall", "cpu")]
                cells = [*seconds, *ratios, f"{figures['memory']:.2f}", f"{difference:.1e}"]
                table.add_row(model, implementation, *cells)
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
