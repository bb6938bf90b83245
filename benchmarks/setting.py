"""Shared by the benchmarks: machine, fresh processes, random models, catalogs, the peers' decoder, linked runs.

Each measurement runs in a process of its own: a script calls itself with `--only SIDE --result FILE`, and the child leaves its
figures and tensors in that file. Peak memory is the child's, imports and model included.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import turns
from memory import peak_gb
from safetensors import safe_open
from safetensors.torch import save_file
from torch.autograd import DeviceType
from transformers import LogitsProcessor, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from minionerec.statistics.intervals import Interval, beyond_noise
from minionerec.tree import CatalogTrie

AMAZON = Path(__file__).resolve().parents[1] / "../shared/data/amazon"
INDUSTRIAL = "Industrial_and_Scientific"
VOCABULARY = 8192  # of the small model, SID tokens not counted
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 2, "hidden": 32, "intermediate": 64, "heads": 4, "kv_heads": 2, "vocabulary": 200},
    "main": {"layers": 4, "hidden": 192, "intermediate": 512, "heads": 4, "kv_heads": 4, "vocabulary": 1000},  # the main job's
    "small": {"layers": 4, "hidden": 256, "intermediate": 1024, "heads": 4, "kv_heads": 4, "vocabulary": VOCABULARY},
    "0.5b": {"layers": 24, "hidden": 896, "intermediate": 4864, "heads": 14, "kv_heads": 2, "vocabulary": 151_936},
    "1.5b": {"layers": 28, "hidden": 1536, "intermediate": 8960, "heads": 12, "kv_heads": 2, "vocabulary": 151_936},
}
Measured = tuple[dict[str, Any], dict[str, torch.Tensor]]


def machine() -> str:
    """Versions, threads and date, for the line above a table."""
    versions = [
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in ("torch", "transformers", "trl")),
    ]
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{os.cpu_count()} cores, {torch.get_num_threads()} thread(s), {', '.join(versions)}, {date.today()}"


def peak_memory() -> float:
    """The most memory that tensors have held on the GPU since the last reset, if one was used, else this program (GB)."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_initialized() else peak_gb()


def repeat(run: Callable[[], Any], seconds: float, most: int = 15) -> tuple[list[float], Any]:
    """The seconds of each of as many runs as fit into `seconds`, one at least; and the last result. On a GPU, to their end."""
    times: list[float] = []
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    while not times or (sum(times) + times[-1] < seconds and len(times) < most):
        started = time.perf_counter()
        result = run()
        wait()
        times.append(time.perf_counter() - started)
    return times, result


def profiler() -> torch.profiler.profile:
    """Counts what runs on the GPU if one was used, else on the CPU."""
    kinds = torch.profiler.ProfilerActivity
    return torch.profiler.profile(activities=[kinds.CUDA if torch.cuda.is_initialized() else kinds.CPU])


def kernels_of(profile: torch.profiler.profile) -> dict[str, Any]:
    """How many kernels ran, the milliseconds of all of them, and the eight that took longest; on a CPU, of operations.

    A profile of a GPU also has the host's calls that launch them, which do not count.
    """
    side, kind = ("device", DeviceType.CUDA) if torch.cuda.is_initialized() else ("cpu", DeviceType.CPU)
    ran = [event for event in profile.key_averages() if event.device_type == kind]
    events = [(getattr(event, f"self_{side}_time_total") / 1000, event) for event in ran]
    events.sort(key=lambda pair: -pair[0])
    longest = [{"name": event.key[:80], "ms": spent, "calls": event.count} for spent, event in events[:8]]
    return {"ms": sum(spent for spent, _ in events), "calls": sum(event.count for _, event in events), "longest": longest}


def positive(text: str) -> int:
    """A whole number above 0, for argparse.

    Raises:
        ArgumentTypeError: anything else.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def options_of_trainings(description: str | None, kept: str, seeds: int) -> argparse.ArgumentParser:
    """The options that tables of trainings share: --config, --out and --seeds; other words are fields of theirs.

    Args:
        kept: what is kept in --out.
        seeds: how many, if none are asked for.
    """
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--config", required=True, help="a preset or a YAML file")
    options.add_argument("--out", type=Path, required=True, help=f"where {kept} are kept")
    options.add_argument("--seeds", type=positive, default=seeds, help="1, 2, ...")
    return options


def parser(description: str | None, sides: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all these benchmarks share."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=positive, default=3, help="fresh processes per side, alternating")
    options.add_argument("--seconds", type=float, default=3.0, help="a process repeats its run for this long, once at least")
    options.add_argument("--only", choices=sides, help="measure one side in this process")
    options.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return options


def check_places(options: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse `--device`, `--run` and `--out` that cannot be used, before anything is measured.

    Raises:
        SystemExit: there is no GPU, the run has no SIDs, or the file's folder is not there.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        options.error("argument --device: cuda, but torch finds no GPU here; --device cpu needs none")
    if arguments.run and not (arguments.run / "sid/codes.safetensors").is_file():
        options.error(f"argument --run: {arguments.run} is no run with a finished stage sid")
    if arguments.out and not arguments.out.parent.is_dir():
        options.error(f"argument --out: the folder {arguments.out.parent} does not exist")


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write what has been measured so far, with the machine, unless no file is asked for."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1), encoding="utf-8")


def report(arguments: argparse.Namespace, measured: Measured) -> None:
    """Write the measurement of a process with `--only` to the parent's file, or print it."""
    figures, tensors = measured
    if arguments.result is None:
        print(json.dumps(figures))
        return
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, arguments.result, {"figures": json.dumps(figures)})


def in_fresh_process(script: str, options: Sequence[str], waits: Mapping[str, str] | None = None) -> Measured:
    """Run a benchmark's script with `--only` and read what it measured.

    Args:
        waits: variables of the environment by which the process finds its turn (`turns.environment`).
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.safetensors"
        root = Path(__file__).resolve().parents[1]
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        command = [sys.executable, script, *options, "--result", str(result)]
        done = subprocess.run(
            command,
            env={**environment, **(waits or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
        with safe_open(result, framework="pt") as file:
            figures = json.loads(file.metadata()["figures"])
            return figures, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def alternate(
    script: str,
    sides: Sequence[str],
    options: Sequence[str],
    repeats: int,
    together: bool = False,
    keep: Callable[[str, dict[str, Any]], None] = lambda side, figures: None,
) -> dict[str, Measured]:
    """Each side in `repeats` fresh processes, one side after another; medians of the figures, tensors of the last.

    Args:
        together: all sides get ready at the same time and then measure one after another (`turns.turn`).
        keep: takes a side's figures as soon as one of its processes has ended; a later one that is cut off does not cost them.
    """
    runs: dict[str, list[Measured]] = {side: [] for side in sides}
    for _ in range(repeats):
        if together:
            with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(sides)) as pool:
                done = {pool.submit(_in_turn, script, [*options, "--only", side], folder, len(sides)): side for side in sides}
                for process in as_completed(done):  # a side that failed ends before those that waited for it, and says why
                    measured = process.result()
                    runs[done[process]].append(measured)
                    keep(done[process], measured[0])
        else:
            for side in sides:
                runs[side].append(in_fresh_process(script, [*options, "--only", side]))
                keep(side, runs[side][-1][0])
    return {
        side: (
            {name: statistics.median(figures[name] for figures, _ in done) for name in done[0][0]},
            done[-1][1],
        )
        for side, done in runs.items()
    }


def _in_turn(script: str, options: Sequence[str], folder: str, sides: int) -> Measured:
    """`in_fresh_process` at its turn; if it fails, nobody waits for it any longer."""
    try:
        return in_fresh_process(script, options, turns.environment(folder, sides))
    except BaseException:
        turns.fail(folder)
        raise


def link_parts(run: Path, folder: Path, names: Sequence[str]) -> None:
    """Make `folder` a run that starts from another's data, SIDs, models, whatever of `names` the other has."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        link = folder / name
        if link.is_symlink():
            link.unlink()  # it may point to another run
        if (run / name).is_dir():
            link.symlink_to((run / name).resolve(), target_is_directory=True)


def in_process_of_its_own(command: Sequence[str]) -> None:
    """Run Python for one job of a table, so that no memory or random state passes from one to the next.

    Args:
        command: what follows `python`.

    Raises:
        SystemExit: it failed.
    """
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    if done := subprocess.run([sys.executable, *command], env=environment, check=False).returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {done}. Run the table's own command again to resume.")


def random_model(
    size: str, sid_tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
) -> PreTrainedModel:
    """A Qwen2 with random weights, made on the device, and tied embeddings; the SID tokens stand behind its vocabulary."""
    sizes = SIZES[size]
    config = Qwen2Config(
        vocab_size=sizes["vocabulary"] + sid_tokens,
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["intermediate"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return Qwen2ForCausalLM._from_config(config, dtype=dtype).to(device).eval()


def industrial_codes(folder: Path = AMAZON) -> tuple[np.ndarray, str]:
    """The SIDs of Industrial and Scientific as SID-token numbers from 0, (items, 3), and where they come from.

    Without the data: random ones of the same shape, 3,686 items, 24 children to a node as in a residual tokenizer's trie.
    """
    path = folder / "index" / f"{INDUSTRIAL}.index.json"
    if not path.exists():
        rng = np.random.default_rng(0)
        first = np.minimum(rng.exponential(24, 3686).astype(int), 255)
        second = (first * 37 + np.minimum(rng.exponential(10, 3686).astype(int), 255)) % 256
        return np.stack([first, 256 + second, 512 + rng.integers(0, 256, 3686)], 1), "a random catalog of 3,686 items"
    rows = list(json.loads(path.read_text(encoding="utf-8")).values())
    numbers = {token: number for number, token in enumerate(sorted({token for row in rows for token in row}))}
    return np.array([[numbers[token] for token in row] for row in rows]), "the Industrial catalog"


def codes_of_run(run: Path) -> tuple[np.ndarray, str]:
    """The SIDs of a prepared run, as `industrial_codes` has them."""
    with safe_open(run / "sid/codes.safetensors", framework="np") as file:
        codes = file.get_tensor("codes").astype(int)
    sizes = codes.max(0) + 1
    return np.where(codes < 0, codes, codes + sizes.cumsum() - sizes), f"the {len(codes):,} items of a run"


class TrieTable(LogitsProcessor):
    """Masks what leads out of the trie, for transformers' own beam search: vectorised, one table per level.

    A level's table holds, for each node above and each token of the level's alphabet, the child's node number, or -1 without a
    child: a call walks the generated tokens through the tables and masks all rows at once.
    """

    def __init__(self, trie: CatalogTrie, prompt_length: int) -> None:
        self.alphabets, self.prompt_length = trie.alphabets, prompt_length
        self.tables = []
        for tokens, offsets, alphabet in zip(trie.tokens, trie.offsets, trie.alphabets, strict=True):
            table = torch.full((len(offsets) - 1, len(alphabet)), -1, dtype=torch.long, device=trie.device)
            above = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=trie.device), offsets.diff().long())
            table[above, torch.searchsorted(alphabet, tokens.long())] = torch.arange(len(tokens), device=trie.device)
            self.tables.append(table)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, length), (rows, vocabulary) -> scores with -inf on all tokens that are no child of the row's node."""
        generated = input_ids[:, self.prompt_length :]
        node = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        for level in range(generated.shape[1]):
            node = self.tables[level][node, torch.searchsorted(self.alphabets[level], generated[:, level].contiguous())]
        level = generated.shape[1]
        columns = self.alphabets[level]
        masked = torch.full_like(scores, -torch.inf)
        masked[:, columns] = scores[:, columns].masked_fill(self.tables[level][node] < 0, -torch.inf)
        return masked


def generate_beams(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    processor: LogitsProcessor,
    num_beams: int,
    levels: int,
    attention_mask: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The peer: transformers' beam search. SIDs (batch, beams, levels) and their scores (batch, beams).

    Args:
        attention_mask: (batch, prompt), 0 on padding; None for none.
        options: of `generate`; they override ours.
    """
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids) if attention_mask is None else attention_mask,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=0.0,
        max_new_tokens=levels,
        pad_token_id=0,
        logits_processor=[processor],
        return_dict_in_generate=True,
        output_scores=True,
        **{"do_sample": False, **options},
    )
    sids = output.sequences[:, input_ids.shape[1] :].view(len(input_ids), num_beams, levels)
    return sids, output.sequences_scores.view(len(input_ids), num_beams)


def difference_text(difference: Interval, p: float) -> str:
    """A paired difference with its interval and its p-value, and `*` if it is beyond noise."""
    mark = "*" if beyond_noise(difference, p) else ""
    return f"{difference.value:+.4f}{mark} [{difference.low:+.4f}, {difference.high:+.4f}], p {p:.2g}"


def change_text(change: Mapping[str, Any]) -> str:
    """`difference_text` of a stored difference."""
    return difference_text(Interval(change["value"], change["low"], change["high"]), change["p"])


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table; numbers with three digits."""

    def text(value: Any) -> str:
        return (
            f"{value:.3g}"
            if isinstance(value, float) and value < 1000
            else f"{value:,.0f}"
            if not isinstance(value, str)
            else value
        )

    print("| " + " | ".join(header) + " |")
    print("| " + " | ".join("---" for _ in header) + " |")
    for row in rows:
        print("| " + " | ".join(text(value) for value in row) + " |", flush=True)
