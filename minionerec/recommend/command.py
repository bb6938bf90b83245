"""`minionerec recommend`: the list of one history in the terminal or as JSON, or the lists of a file of users."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from minionerec.artifacts.ray_engine import check_engine
from minionerec.distributed import Engine, use_engine
from minionerec.errors import ConfigError
from minionerec.recommend.batch import Job, recommend_users
from minionerec.recommend.explain import BeamNode, Explanation
from minionerec.recommend.filters import Filters
from minionerec.recommend.lists import Recommendation
from minionerec.recommend.recommender import Recommender
from minionerec.recommend.users import ids_of


def check(options: dict[str, Any]) -> None:
    """Refuse options that do not go together, before a model is loaded.

    Raises:
        ConfigError: neither or both of `--history` and `--users` are there, or an option belongs to the other one.
    """
    if (options["history"] is None) == (options["users"] is None):
        raise ConfigError("recommend needs either --history IDS, or --users FILE and --out DIR.")
    if options["users"] is not None and options["out"] is None:
        raise ConfigError("--users needs --out DIR, the folder for the lists.")
    others, owner = (("json", "explain"), "history") if options["users"] is not None else (("out", "replace"), "users")
    for name in others:
        if options[name] not in (None, False):
            raise ConfigError(f"--{name} belongs to --{owner}.")
    if options["users"] is None and options["engine"] != "processes":
        raise ConfigError("--engine belongs to --users.")
    if options["engine_workers"] is not None and options["engine"] != "ray":
        raise ConfigError("--engine-workers belongs to --engine ray.")
    if options["engine"] == "ray":
        check_engine()


def run(console: Console, options: dict[str, Any]) -> None:
    """Recommend, and print the list or where the lists are.

    Args:
        console: where it is printed.
        options: those of the command line, by name.
    """
    mixture = False if options["no_mixture"] else None
    recommender = Recommender.load(options["run"], options["stage"], options["device"], options["dtype"], mixture)
    filters = Filters(
        allow=None if options["allow"] is None else _ids(options["allow"]),
        deny=_ids(options["deny"] or ""),
        category=options["category"],
        exclude_history=options["exclude_history"],
    )
    search = {name: options[name] for name in ("num_beams", "widest")}
    search["on_unknown"] = "skip" if options["skip_unknown"] else "error"
    if options["users"] is not None:
        job = Job(options["users"], filters, options["k"], **search)
        with use_engine(Engine(options["engine"], options["engine_workers"])):
            _recommend_users(console, recommender, job, options["out"], options["replace"])
        return
    history = ids_of(options["history"])
    if options["explain"]:
        explanation = recommender.explain(history, options["k"], filters, **search)
        recommendation, answer = explanation.recommendation, asdict(explanation)
        if explanation.shares is None:
            del answer["shares"]
    else:
        [recommendation] = recommender.recommend([history], options["k"], filters, **search)
        explanation, answer = None, asdict(recommendation)
    if options["json"]:
        console.print(json.dumps(answer, indent=2, ensure_ascii=False, allow_nan=False), markup=False, soft_wrap=True)
        return
    console.print(list_table(recommendation))
    for line in remarks(recommendation):
        console.print(line, markup=False)
    if recommender.mixture is not None and recommendation.fallback is None:
        names = ", ".join(recommender.mixture.components)
        console.print(f"Scores are of the model mixed with {names}; --no-mixture asks the model alone.", markup=False)
    if explanation is not None:
        if explanation.shares is not None:
            console.print(share_table(explanation.recommendation, explanation.shares))
        console.print(tree_of(explanation))


def _recommend_users(console: Console, recommender: Recommender, job: Job, out: Path, replace: bool) -> None:
    say: Callable[[str], None] = lambda text: console.print(text, markup=False)  # noqa: E731
    manifest, fresh = recommend_users(recommender, job, out, replace=replace, say=say)
    figures = ", ".join(f"{name} {value:,}" for name, value in manifest.metrics.items())
    console.print(f"[bold]recommend[/] {escape(str(out))}: {figures}{'' if fresh else ' [dim](up to date)[/]'}")


def _ids(text: str) -> list[str]:
    """Ids with commas between them, a JSON list of ids, or `@FILE` with one id per line."""
    if not text.startswith("@"):
        return ids_of(text)
    try:
        lines = Path(text[1:]).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{text}: cannot be read ({error}); expected a text file with one item id per line.") from None
    return [line.strip() for line in lines if line.strip()]


def list_table(recommendation: Recommendation) -> Table:
    """A list for people."""
    table = Table()
    table.add_column("", justify="right")
    table.add_column("item")
    table.add_column("title")
    popular = recommendation.fallback is not None
    table.add_column("interactions" if popular else "score", justify="right")
    table.add_column("SID", no_wrap=True)
    for item in recommendation.items:
        score = f"{item.score:,.0f}" if popular else f"{item.score:.3f}"
        table.add_row(str(item.place), *map(_inert, (item.item_id, item.title, score, item.sid + (" =" if item.tied else ""))))
    return table


def share_table(recommendation: Recommendation, shares: Sequence[Mapping[str, float]]) -> Table:
    """Which part of each item's probability comes from where, for people."""
    table = Table(title="Where the probability of each item comes from", title_justify="left")
    table.add_column("", justify="right")
    table.add_column("item")
    for name in shares[0] if shares else ():
        table.add_column(name, justify="right")
    for item, parts in zip(recommendation.items, shares, strict=True):
        table.add_row(str(item.place), _inert(item.item_id), *(f"{part:.1%}" for part in parts.values()))
    return table


def remarks(recommendation: Recommendation) -> list[str]:
    """What one must know about a list, in sentences."""
    count = len(recommendation.items)
    beams = f"{recommendation.beams} beam{'s' if recommendation.beams > 1 else ''}"
    lines = []
    if recommendation.fallback is not None:
        lines.append("The history is empty: these are the most popular items.")
    elif recommendation.exact:
        lines.append(f"Proven: no other item that may be listed has a higher score ({beams}).")
    else:
        lines.append(f"Not proven to be the top {count} ({beams}); --widest 1000 searches on until it is.")
    if any(item.tied for item in recommendation.items):
        lines.append("=: other items have this SID; the model cannot order them, so they stand in catalog order.")
    if recommendation.reason is not None:
        lines.append(f"The list is short. {recommendation.reason}")
    if recommendation.cut:
        lines.append(f"The {recommendation.cut} oldest items of the history were left out: the model reads no more.")
    if recommendation.skipped:
        lines.append(f"Unknown and left out: {', '.join(map(str, recommendation.skipped))}.")
    return lines


def tree_of(explanation: Explanation) -> Tree:
    """The search as a tree; of the nodes without an item of the list only the number."""
    over = "all tokens" if explanation.normalise_over == "vocabulary" else "the legal codes"
    root = Tree(f"Each code with its probability among {over}, given the codes before it, and that of all codes so far")
    _add(root, explanation.root)
    return root


def _add(tree: Tree, node: BeamNode) -> None:
    others = 0
    for child in node.children:
        if not child.places:
            others += 1
            continue
        places = ", ".join(map(str, child.places))
        titles = _inert("; ".join(child.titles))
        code = escape(child.token or "end")
        chances = f"{_chance(child.logprob)} {_chance(child.score)}"
        _add(tree.add(f"[bold]{code}[/] {chances}  [dim]beams {child.beams}, places {places}[/]  {titles}"), child)
    if others:
        tree.add(f"[dim]{others} more kept, with no item in the list[/]")
    if node.pruned and node.best_pruned is not None:
        tree.add(f"[dim]{node.pruned} pruned, best at most {_chance(node.best_pruned)}[/]")


def _inert(text: str) -> str:
    r"""Text of files for the terminal: its control characters, which could give the terminal orders, and markup do nothing.

    >>> print(ascii(_inert("a \x1b[31mlamp[/]")))
    'a \ufffd[31mlamp\\[/]'
    """
    return escape(re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", text))


def _chance(logprob: float) -> str:
    """A log-probability as a probability.

    >>> _chance(-0.1), _chance(-12.0)
    ('.905', '6e-06')
    """
    chance = math.exp(logprob)
    return f"{chance:.0e}" if chance < 0.0005 else f"{chance:.3f}".removeprefix("0")
