"""Zero-shot scores of a causal LM: how much likelier the next token is YES than NO, for every pair of a split.

Inputs: `<run>/pairs`, any causal LM (`score.model`). Output: `<run>/scoring/zero-shot-<model>/`.
The score is z = log p(YES) - log p(NO), so that sigmoid(z) is RecBench's p(YES) / (p(YES) + p(NO)); it is kept as it is, since
p(YES) rounded to four decimals ties many pairs. All candidates of a user are branches of one prefix tree: the tokens before the
candidate are computed once, and YES and NO cost no token. The scores are those of one prompt after the other.
Command: `minionerec score --config ml-100k-pairs --score.model smollm2-135m`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel

from minionerec.artifacts import CHECKPOINTS, Manifest, Recipe, over_shards, shards_of
from minionerec.config import Config
from minionerec.data.pairs import PairSet
from minionerec.data.parquet import read_parquet
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import ArtifactError
from minionerec.model import checkpoint, pretrained
from minionerec.prompts.pairs import PairPrompts, PairWords, UserPrompts
from minionerec.prompts.plain_text import PlainText
from minionerec.scoring.titles import titles
from minionerec.training.memory import enough_memory
from minionerec.training.scored_pairs import pairs_of_split, row_name, score_recipe, write_scores
from minionerec.tree import Branch, pack, tree_logprobs

_MEMORY_ADVICE = ("while pairs were scored", "Lower score.batch_users or score.row_tokens; the scores stay the same.")


def yes_over_no(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], answers: tuple[int, int], row_tokens: int
) -> torch.Tensor:
    """The log-probability of yes minus that of no behind each prompt, (prompts,) float32, with gradient.

    Args:
        model: a causal LM.
        prompts: token ids; what they share at their beginning is computed once.
        answers: tokens of yes and no.
        row_tokens: see `tree.pack`.

    Raises:
        ConstraintError: the model cannot be computed on trees.
    """
    branches = [Branch(prompt, [answer]) for prompt in prompts for answer in answers]
    device = next(model.parameters()).device
    logprobs = tree_logprobs(model, pack(branches, row_tokens=row_tokens).to(device)).logprobs.view(-1, 2)
    return logprobs[:, 0] - logprobs[:, 1]


def score_zero_shot(config: Config) -> tuple[Manifest, bool]:
    """Score the pairs by `score.model`; every process calls it and takes its share of the users.

    Raises:
        ArtifactError: the pairs are not prepared, or a process did not finish its share.
        ConfigError: the model cannot be loaded or computed on trees, answers both ways with one token, or cannot read a prompt.
        DataError: the split is empty, or an item has no title.
    """
    path = str(config.score.model)

    def inputs() -> dict[str, str]:
        identity = pretrained.identity(path)
        return {} if identity is None else {"model": identity}

    # The identity of the model's files decides, wherever they lie; of a name of the hub, the name.
    asked = {
        "model": None if inputs() else path,
        "dtype": config.score.dtype,
        "max_tokens": config.score.max_tokens,
        **asdict(PairWords.of(config.score)),
    }
    recipe = score_recipe(config, row_name("zero-shot", path), {"asked": asked}, inputs)
    return recipe.make(lambda: _score(config, path, recipe), collective=True)


def _score(config: Config, path: str, recipe: Recipe) -> None:
    pairs = PairSet.load(config.folder / "pairs")
    rows = pairs_of_split(pairs, config)
    model, tokenizer = checkpoint.load(path, config.score.dtype)
    items = titles(pairs, PlainText(tokenizer))
    limits = [limit for limit in (checkpoint.context_of(model), config.score.max_tokens) if limit is not None]
    prompts = PairPrompts(tokenizer, PairWords.of(config.score), items, min(limits, default=None))
    with recipe.write(resumable=True, collective=True) as draft:
        scorer = Scorer(model.to(distributed_state().device).eval(), prompts, config)
        scores, figures = score_in_shards(scorer, rows, draft.path / CHECKPOINTS)
        if is_main_process():
            facts = {"label": f"{Path(path).name}, zero-shot", "kind": "model", "scale": "logit"}
            write_scores(draft, rows, scores, **facts, **figures)


class Scorer:
    """Asks a model about the candidates of users, some users at once."""

    def __init__(self, model: PreTrainedModel, prompts: PairPrompts, config: Config) -> None:
        self._model, self._prompts, self.config = model, prompts, config.score
        self._answers = prompts.answers()

    def scores(self, users: Sequence[tuple[list[int], list[int]]]) -> Iterator[tuple[list[float], UserPrompts]]:
        """Each user's scores, with the prompts that they were asked.

        Args:
            users: history and candidates of each.
        """
        size = self.config.batch_users
        for start in range(0, len(users), size):
            asked = [self._prompts.of_user(history, candidates) for history, candidates in users[start : start + size]]
            flat = [prompt for of_user in asked for prompt in of_user.tokens]
            with torch.no_grad(), enough_memory(lambda: _MEMORY_ADVICE):
                values = yes_over_no(self._model, flat, self._answers, self.config.row_tokens).tolist()
            for of_user in asked:
                yield values[: len(of_user.tokens)], of_user
                values = values[len(of_user.tokens) :]


def score_in_shards(scorer: Scorer, rows: pl.DataFrame, store: Path) -> tuple[np.ndarray, dict[str, int]]:
    """The scores of all rows, (rows,), and how many users' prompts were cut.

    Args:
        store: keeps the shards; an interrupted command resumes after those that are complete.

    Raises:
        ArtifactError: a process did not finish its share.
    """
    store.mkdir(exist_ok=True)
    grouped = rows.group_by("user", maintain_order=True).agg(pl.col("history").first(), "candidate")
    users = list(zip(grouped["history"].to_list(), grouped["candidate"].to_list(), strict=True))
    shards = {
        store / f"users-{of.start:07d}-{of.stop:07d}.parquet": of for of in shards_of(len(users), scorer.config.shard_users)
    }

    def write(of: range, path: Path) -> None:
        scored = [(scores, asked.left_out > 0, asked.halved > 0) for scores, asked in scorer.scores(users[of.start : of.stop])]
        frame = pl.DataFrame(
            scored, schema={"scores": pl.List(pl.Float64), "cut": pl.Boolean, "halved": pl.Boolean}, orient="row"
        )
        temporary = path.with_suffix(".tmp")
        frame.write_parquet(temporary)
        temporary.replace(path)

    over_shards(shards, write, "score", "users")
    if not is_main_process():
        return np.empty(0), {}
    every = pl.concat([read_parquet(path, ArtifactError, "Delete it and run the same command again.") for path in shards])
    figures = {"users_with_cut_history": int(every["cut"].sum()), "users_with_halved_texts": int(every["halved"].sum())}
    return every["scores"].explode().to_numpy(), figures
