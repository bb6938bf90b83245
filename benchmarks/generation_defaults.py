"""What an Instruct checkpoint's generation defaults do to the released code's evaluation: HR@10 and NDCG@10, with paired
intervals.

transformers merges a checkpoint's `generation_config` into every field that a caller leaves at its default, `do_sample=False`
included. What is meant as beam search then is beam sampling with the defaults of Qwen2.5-Instruct: top-k 20, top-p 0.8,
temperature 0.7, and a repetition penalty that punishes the SIDs of the history. Our decoder never reads that file, so the
mistake lives here and not behind a switch of the evaluation. The script asks one finished SFT model about the same users in
three ways: our decoder, transformers' beam search with the released code's constraint, and the same with the defaults.

    python benchmarks/generation_defaults.py RUN --config NAME --examples 512 --data.path FOLDER

The run is only read. It must be trained with `sft.normalise_over: vocabulary`, as the released code does: its constraint
scores so. It uses split, number of beams and batch size of the section `eval`; the released code has neither
`normalise_over` nor `exclude_history`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from setting import difference_text, generate_beams, machine, positive, table
from transformers import LogitsProcessor, PreTrainedModel

from minionerec import cli
from minionerec.artifacts import Manifest
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.errors import MiniOneRecError
from minionerec.eval.metrics import positions
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.sid.index import SidIndex
from minionerec.statistics.intervals import paired, permutation
from minionerec.statistics.ranking import per_user
from minionerec.statistics.sampling import evenly_spaced
from minionerec.tree import CatalogTrie, beam_search, left_pad

METRICS = ("HR@10", "NDCG@10")
RESAMPLES = 10_000
DEFAULTS = {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.1}
PENALTY = -1e6


class ReleasedConstraint(LogitsProcessor):
    """The released code's: log-softmax over all tokens, then a penalty of a million for those that lead to no SID.

    Behind a beginning that no SID has, every token is penalised, so decoding continues without a constraint.

    Args:
        sids: token ids of the catalog's SIDs.
        prompt_length: padded length of the prompts (tokens).
    """

    def __init__(self, sids: list[list[int]], prompt_length: int) -> None:
        self.prompt_length = prompt_length
        allowed: dict[tuple[int, ...], set[int]] = {}
        for sid in sids:
            for level, token in enumerate(sid):
                allowed.setdefault(tuple(sid[:level]), set()).add(token)
        self.allowed = {prefix: sorted(tokens) for prefix, tokens in allowed.items()}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, length), (rows, vocabulary) -> (rows, vocabulary) scores."""
        penalties = torch.full_like(scores, PENALTY)
        for row, generated in enumerate(input_ids[:, self.prompt_length :].tolist()):
            penalties[row, self.allowed.get(tuple(generated), [])] = 0
        return scores.log_softmax(-1) + penalties


def generate(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, sids: list[list[int]], num_beams: int, **options: object
) -> torch.Tensor:
    """Token sequences, SIDs or not, by transformers' `generate`, best first: (batch, beams, levels) token ids."""
    levels, constraint = len(sids[0]), ReleasedConstraint(sids, ids.shape[1])
    # Sampling may leave the catalog, where a model could end early.
    return generate_beams(model, ids, constraint, num_beams, levels, mask, min_new_tokens=levels, **options)[0]


@dataclass(frozen=True)
class Asked:
    """The results of some ways of asking one model.

    Attributes:
        ranks: per way of `WAYS`, (examples,) the target's 0-based rank, infinity where its list lacks it.
        units: (examples,) the number of each example's user, from 0.
        invalid: share of what `DEFAULTED` lists that is no SID of the catalog.
    """

    ranks: dict[str, np.ndarray]
    units: np.ndarray
    invalid: float

    def values(self, way: str) -> np.ndarray:
        """(metrics, examples), in the order of `METRICS`."""
        by_metric = per_user(self.ranks[way])
        return np.stack([by_metric[name] for name in METRICS])


OURS, PLAIN, DEFAULTED = WAYS = ("our decoder", "generate", "generate with the defaults")


def ask(config: Config, examples: int, seed: int, ways: Sequence[str] = WAYS) -> Asked:
    """Ask a run's SFT model about examples of the split, evenly spread.

    Args:
        seed: of the sampling.

    Raises:
        SystemExit: there is no finished SFT model, it was trained with other probabilities than the released code's, or SIDs
            differ in length.
    """
    try:
        trained = Manifest.load(config.folder / "sft").config["sft"]["normalise_over"]
    except MiniOneRecError as error:
        raise SystemExit(f"{error} The run needs a finished SFT model: minionerec sft --config NAME") from None
    if trained != "vocabulary":
        raise SystemExit(
            f"{config.folder}/sft: trained with sft.normalise_over {trained}; the released code's needs vocabulary."
        )
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    model, tokenizer = checkpoint.load(str(config.folder / "sft" / "model"))
    model.eval()
    prompts = Prompts(dataset, index, tokenizer, config.resolved_prompts, checkpoint.context_of(model))
    tokens = prompts.sid_tokens
    if (tokens < 0).any():
        raise SystemExit(f"{config.folder}/sid: SIDs differ in length; the released code's constraint takes one length only.")
    trie, sids = CatalogTrie.from_codes(tokens), tokens.unique(dim=0).tolist()
    prompted = prompts.examples("history_sid_to_sid", config.eval.split)
    rows = evenly_spaced(len(prompted), examples)
    beams, size = config.eval.num_beams, config.eval.batch_size
    decoders: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        OURS: lambda ids, mask: beam_search(model, ids, mask, trie=trie, num_beams=beams, normalise_over="vocabulary").tokens,
        PLAIN: lambda ids, mask: generate(model, ids, mask, sids, beams),
        DEFAULTED: lambda ids, mask: generate(model, ids, mask, sids, beams, **DEFAULTS),
    }
    target_ranks: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    is_sid, catalog = [], set(map(tuple, sids))
    torch.manual_seed(seed)
    with torch.no_grad():
        for start in range(0, len(rows), size):
            batch = [prompted[row] for row in rows[start : start + size]]
            ids, mask = left_pad([example.prompt for example in batch], tokenizer.pad_token_id)
            targets = tokens[[example.target for example in batch]].numpy()
            for way in ways:
                lists = decoders[way](ids, mask)
                target_ranks[way].append(positions(lists.numpy(), targets))
                if way == DEFAULTED:
                    is_sid += [tuple(sid) in catalog for group in lists.tolist() for sid in group]
    users = dataset.split(config.eval.split)["user"].to_numpy()[rows]
    ranks = {way: np.concatenate(parts) for way, parts in target_ranks.items()}
    return Asked(ranks, np.unique(users, return_inverse=True)[1], float(1 - np.mean(is_sid)) if is_sid else 0.0)


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("run", type=Path, help="folder of a run with a finished SFT model whose SIDs have one length")
    options.add_argument("--config", required=True, help="the run's configuration: a preset or a YAML file")
    options.add_argument("--examples", type=positive, default=512, help="examples of the split, evenly spread")
    options.add_argument("--seed", type=int, default=1, help="of the sampling")
    arguments, fields = options.parse_known_args(argv)
    command = ["--config", arguments.config, "--out", str(arguments.run), *fields]
    if "--print_config" in fields:
        cli.main(["run", *command])
        return
    config = cli.parse("run", command)
    answers = ask(config, arguments.examples, arguments.seed)
    print(f"{machine()}; {arguments.config}, {len(answers.units)} {config.eval.split} examples, {config.eval.num_beams} beams")
    table(["decoder", *METRICS], [[way, *(f"{row.mean():.4f}" for row in answers.values(way))] for way in WAYS])
    print()
    ours, rows = answers.values(OURS), []
    for way in (PLAIN, DEFAULTED):
        intervals = paired(ours, answers.values(way), RESAMPLES, 0, answers.units)
        p_values = permutation(ours, answers.values(way), RESAMPLES, 0, answers.units)
        rows.append([f"{way} - {OURS}", *map(difference_text, intervals, p_values)])
    table(["", *METRICS], rows)
    print(f"\n{answers.invalid:.1%} of what is sampled with the defaults is no SID of the catalog.")


if __name__ == "__main__":
    main()
