"""The table of commands: what each does, which sections of the configuration its help shows, and its own options."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from minionerec import commands
from minionerec.config import CUTOFFS, DTYPES, RESAMPLES
from minionerec.config.checks import Bounds
from minionerec.config.evaluation import FREQUENT, MOST_BEAMS, RANKING_METRICS, RESAMPLES_BOUNDS
from minionerec.distributed import EngineName

OWN_KEYS = ("bounds", "writes", "alone_reads", "when_long")  # of an option, next to what `add_argument` takes: see `parser`


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    help: str
    """One line for the overview."""
    run: Callable[..., None]
    """Takes the configuration first if `takes_config`, then the command's own options by name."""
    sections: tuple[str, ...] = ()
    """Sections of the configuration that `--help` shows; `--help-all` shows all."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Its own options and arguments: name to what `add_argument` takes, `bounds` of a number, `writes` of a file that is
    written, `when_long` of a text: what to do if it is too long, and `alone_reads` of a switch without which the command does
    not read that section of the configuration."""
    takes_config: bool = True
    """Whether the command reads the configuration."""


def _path(metavar: str, help: str, **more: Any) -> dict[str, Any]:
    return {"type": Path, "metavar": metavar, "help": help, **more}


_DRY_RUN: dict[str, dict[str, Any]] = {
    "--dry-run": {"action": "store_true", "help": "print the plan of the training and stop"},
    "--devices": {
        "type": int,
        "metavar": "COUNT",
        "help": "with --dry-run: for so many devices (of each machine)",
        "bounds": Bounds(1, 100_000),
    },
    "--machines": {
        "type": int,
        "metavar": "COUNT",
        "help": "with --dry-run: for so many machines (default 1)",
        "bounds": Bounds(1, 100_000),
    },
    "--gbit": {
        "type": float,
        "metavar": "SPEED",
        "help": "with --dry-run: speed of each machine's link, Gbit/s",
        "bounds": Bounds(0, 10**6, above=True),
    },
    "--gpu-memory": {
        "type": float,
        "metavar": "GB",
        "help": "with --dry-run: memory of a device, to see what fits",
        "bounds": Bounds(0, 10**6, above=True),
    },
}
_RESAMPLING: dict[str, dict[str, Any]] = {
    "--resamples": {
        "type": int,
        "metavar": "COUNT",
        "default": RESAMPLES,
        "help": "bootstrap resamples",
        "bounds": RESAMPLES_BOUNDS,
    },
    "--seed": {
        "type": int,
        "metavar": "NUMBER",
        "default": 42,
        "help": "seed of the resampling",
        "bounds": Bounds(0, 2**32 - 1),
    },
}
_LAUNCH_CHECK: dict[str, dict[str, Any]] = {
    "--out": _path("DIR", "folder that all machines share (default: runs)", default=Path("runs")),
    "--machines": {
        "type": int,
        "metavar": "COUNT",
        "help": "refuse unless so many machines take part (told apart by their host names)",
        "bounds": Bounds(1, 100_000),
    },
}
_NO_MIXTURE: dict[str, dict[str, Any]] = {
    "--no-mixture": {"action": "store_true", "help": "the model alone, without what minionerec mixture mixes in"}
}
_DESCRIBE = {
    "--html": _path("FILE", "write a self-contained page to this file", writes=True),
    "--json": _path("FILE", "write the facts to this file", writes=True),
}
_EXPORT = {
    "--layout": {
        "choices": ("released", "recbole"),
        "required": True,
        "metavar": "NAME",
        "help": "whose layout: released or recbole",
    },
    "--to": _path("FOLDER", "the folder to write to", required=True),
}
_EXPORT_MODEL: dict[str, dict[str, Any]] = {
    "--run": _path("RUN", "the folder of a run", required=True),
    "--to": _path("FOLDER", "the folder to write", required=True),
    "--for": {
        "choices": ("hf", "vllm", "sglang", "flashrec"),
        "default": "hf",
        "metavar": "ENGINE",
        "help": "what will serve it: hf (transformers), vllm, sglang or flashrec; refused if it cannot",
    },
    "--stage": {"choices": ("sft", "rl"), "metavar": "STAGE", "help": "sft or rl (default: the last that the run has)"},
    "--push": {"metavar": "HUB_NAME", "help": "also upload the folder to the model hub, into this private repository"},
    "--replace": {"action": "store_true", "help": "replace another export in this folder"},
    **_NO_MIXTURE,
}
_BASELINE_TABLE = {
    "name": {"nargs": "+", "help": "beauty, lastfm, or the folders of runs with evaluated recommenders"},
    "--runs": _path("DIR", "of beauty and lastfm: folder of the presets' runs (default: runs)"),
    "--reference": {
        "metavar": "NAME",
        "help": "of runs: the recommender that the others are compared with (default: rl, else sft)",
    },
    "--on": {
        "choices": ("item", "sid"),
        "default": "item",
        "metavar": "LEVEL",
        "help": "of runs: whether an item or its SID must be the target's (item or sid)",
    },
    "--json": _path("FILE", "of runs: write the table to this file", writes=True),
    "--html": _path("FILE", "of runs: write a self-contained page to this file", writes=True),
    **_RESAMPLING,
}
_SLICES: dict[str, dict[str, Any]] = {
    "run": _path("RUN", "folder of a run with evaluated recommenders"),
    "--metric": {
        "choices": RANKING_METRICS,
        "default": "NDCG@10",
        "metavar": "NAME",
        "help": "a metric on items, such as HR@10 or NDCG@10",
    },
    "--frequent": {
        "type": int,
        "default": FREQUENT,
        "metavar": "COUNT",
        "help": "how many of the most frequent targets one slice sets apart",
        "bounds": Bounds(1, 10**6),
    },
    "--only": {"metavar": "A,B,...", "help": "names of the recommenders to show (default: all that are evaluated)"},
    "--reference": {
        "metavar": "NAME",
        "help": "the recommender that the others are compared with (default: rl, else sft, else the last)",
    },
    **_RESAMPLING,
}
_BASELINE_IMPORT = {
    "file": _path("FILE", "a file of torch.save: a state dict, alone or in a dictionary"),
    "--to": _path("FILE", "the file to write (default: next to FILE, with the ending .safetensors)", writes=True),
}
_LEVELS = {
    "--path": _path("FILE", "predictions.jsonl of an eval stage, or the released code's result JSON", required=True),
    "--out": _path("DIR", "folder for levels.json and levels.png (default: folder of FILE)"),
    "--index": _path("FILE", "index.json or info text of the catalog, for item-level ranks of the released code's JSON"),
    "--cutoffs": {
        "type": int,
        "nargs": "+",
        "default": list(CUTOFFS),
        "metavar": "K",
        "help": "cut-offs K",
        "bounds": Bounds(1, 10**6),
    },
    **_RESAMPLING,
}
_GAP = {
    "--runs": _path(
        "RUN", "folders of runs, predictions.jsonl files, or result JSON of the released code", nargs="*", default=[]
    ),
    "--out": _path("DIR", "folder for paper_gap.json, .md and .html", required=True),
    "--dataset": {"metavar": "NAME", "help": "published dataset of all runs, if their size does not show it"},
    "--index": _path("FILE", "index.json or info text of the catalog of the released code's result files"),
    **_RESAMPLING,
}
_MODEL = {
    "--run": _path("RUN", "run or exported folder whose model answers (default: the run of --config)"),
    "--stage": {"choices": ("sft", "rl"), "help": "which model of the run (default: the last)"},
    "--device": {"metavar": "NAME", "help": "such as cpu or cuda:1 (default: this machine's accelerator, else cpu)"},
    "--dtype": {"metavar": "NAME", "help": "number format of the weights, such as bfloat16 (default: as evaluated)"},
}

_IDS_IN_FILE = "Write the ids into a file, one a line, and name it: @FILE."
_IDS = "item ids with commas between them, a JSON list of ids"
_RECOMMEND = {
    "--run": _path("RUN", "folder of a run or of an export", required=True),
    "--history": {"metavar": "IDS", "help": f"what the user had, oldest first: {_IDS}"},
    "--users": _path("FILE", "parquet or CSV with the columns user and history, or a folder of such files; needs --out"),
    "--out": _path("DIR", "folder for the lists of --users, as parquet"),
    "--engine": {"choices": get_args(EngineName), "default": "processes", "help": "who makes the lists of --users"},
    "--engine-workers": {
        "type": int,
        "metavar": "COUNT",
        "help": "workers of the engine ray (default: one per GPU, or per core)",
        "bounds": Bounds(1, 10_000),
    },
    "--k": {"type": int, "metavar": "COUNT", "default": 10, "help": "items per list", "bounds": Bounds(1, MOST_BEAMS)},
    "--stage": {"choices": ("sft", "rl"), "metavar": "NAME", "help": "sft or rl (default: rl if the run has it)"},
    "--allow": {
        "metavar": "IDS",
        "help": f"only these items: {_IDS}, or @FILE with one id per line",
        "when_long": _IDS_IN_FILE,
    },
    "--deny": {"metavar": "IDS", "help": "none of these items, written like --allow", "when_long": _IDS_IN_FILE},
    "--category": {"metavar": "NAME", "help": "only items of this category"},
    "--exclude-history": {
        "action": argparse.BooleanOptionalAction,
        "help": "no item of the history, or such items too (default: as the run was evaluated)",
    },
    "--num-beams": {
        "type": int,
        "metavar": "COUNT",
        "help": "beams of the search (default: as evaluated, at least --k)",
        "bounds": Bounds(1, MOST_BEAMS),
    },
    "--widest": {
        "type": int,
        "metavar": "COUNT",
        "help": "search again with twice the beams, up to this many, until the list is proven exact",
        "bounds": Bounds(1, MOST_BEAMS),
    },
    "--skip-unknown": {"action": "store_true", "help": "leave out items that the catalog lacks instead of refusing them"},
    "--explain": {
        "action": "store_true",
        "help": "show the search as a tree: each code with its probability, and what was pruned",
    },
    "--json": {"action": "store_true", "help": "print JSON"},
    "--device": {"metavar": "NAME", "help": "such as cpu or cuda:1"},
    "--dtype": {"choices": DTYPES, "metavar": "NAME", "help": "of the weights (default: as evaluated)"},
    "--replace": {"action": "store_true", "help": "replace lists in --out that were made from something else"},
    **_NO_MIXTURE,
}

COMMANDS: dict[str, Command] = {
    "run": Command("all stages in order: data, sid, sft, rl, eval, report", commands.run_all),
    "data prepare": Command(
        "raw files to a Dataset: catalog and train, valid and test examples", commands.run_stage("data"), ("data",)
    ),
    "data describe": Command(
        "the facts of a prepared Dataset: terminal, HTML and JSON", commands.describe_data, options=_DESCRIBE
    ),
    "data export": Command(
        "a prepared Dataset in the layout of the released code or of RecBole", commands.export_data, options=_EXPORT
    ),
    "data list": Command(
        "the public datasets that can be fetched: name, content, terms, size",
        commands.list_data,
        options={"name": {"nargs": "?", "help": "show only names that begin like this"}},
        takes_config=False,
    ),
    "data get": Command(
        "fetch a public dataset into the cache ($MINIONEREC_CACHE); run it again to resume a download",
        commands.get_data,
        options={"name": {"help": "a name that `minionerec data list` shows"}},
        takes_config=False,
    ),
    "model get": Command(
        "fetch a published language model into the cache ($MINIONEREC_CACHE), for --model.path",
        commands.get_model,
        options={"name": {"help": "smollm2-135m"}},
        takes_config=False,
    ),
    "sid": Command("item text to semantic IDs", commands.run_stage("sid"), ("sid",)),
    "sid inspect": Command("figures of a run's semantic IDs, in the terminal and as an HTML page", commands.inspect_sids),
    "sid compare": Command(
        "several quantizers on a run's catalog in one table",
        commands.compare_sids,
        ("sid",),
        {"--methods": {"metavar": "A,B,...", "help": "values of sid.method with commas between them (default: all)"}},
    ),
    "sid append": Command(
        "semantic IDs for new items; the semantic IDs of an earlier run stay as they are",
        commands.append_sids,
        ("sid",),
        {"--base": _path("RUN", "folder of the run whose semantic IDs are extended", required=True)},
    ),
    "sft": Command("supervised fine-tuning of a causal LM", commands.run_training("sft"), ("sft",), _DRY_RUN),
    "rl": Command("GRPO from the SFT model with ranking rewards", commands.run_training("rl"), ("rl",), _DRY_RUN),
    "launch check": Command(
        "before a training on several machines: whether all processes are one world and see one folder, and a timed exchange",
        commands.check_launch,
        options=_LAUNCH_CHECK,
        takes_config=False,
    ),
    "mixture": Command(
        "weights of counts, text neighbours and a baseline beside a trained model, for eval, recommend and serve",
        commands.run_stage("mixture"),
        ("mixture",),
    ),
    "d3": Command(
        "weight of a model beside a baseline that helps it at every step (D3), chosen on valid",
        commands.run_stage("d3"),
        ("eval",),
    ),
    "eval": Command("constrained beam search over a split, metrics with intervals", commands.evaluate, ("eval",)),
    "recommend": Command(
        "lists of items for one history, or for the users of a file", commands.recommend, options=_RECOMMEND, takes_config=False
    ),
    "report": Command("one HTML page of the run", commands.report, ("report",)),
    "export": Command(
        "a trained model as one folder: model, trie, catalog, prompt and golden lists, for other programs and engines",
        commands.export_model,
        options=_EXPORT_MODEL,
        takes_config=False,
    ),
    "baseline": Command(
        "a sequential recommender on the same split, with the same metrics", commands.run_stage("baseline"), ("baseline",)
    ),
    "baseline table": Command(
        "a published table next to our rows (beauty, lastfm), or all recommenders of some runs beside the published ones",
        commands.table_of_baselines,
        options=_BASELINE_TABLE,
        takes_config=False,
    ),
    "baseline import": Command(
        "published weights of a baseline, pickled by torch (.pt, .pth), as a safetensors file for --baseline.weights",
        commands.import_baseline,
        options=_BASELINE_IMPORT,
        takes_config=False,
    ),
    "lego": Command(
        "a content recommender of three parts (Legommenders): item encoder, user encoder, interaction; on lists or on pairs",
        commands.lego,
        ("lego", "green"),
    ),
    "pairs prepare": Command(
        "labelled pairs of a history and a candidate, for models that say yes or no", commands.prepare_pairs, ("pairs",)
    ),
    "pairs audit": Command(
        "published tables of AUC by data set: figures that cannot be right, or mean little",
        commands.audit_pair_tables,
        options={
            "file": _path(
                "FILE",
                "a JSON file with columns and tables, see docs/scoring.md (default: those of RecBench's authors)",
                nargs="?",
            )
        },
        takes_config=False,
    ),
    "pairs table": Command(
        "scored pairs of runs beside RecBench's published tables, what is wrong with these, and what was not run",
        commands.table_of_pairs,
        options={
            "run": _path("RUN", "folders of runs that minionerec score has scored", nargs="*"),
            "--html": _path("FILE", "write a self-contained page to this file", writes=True),
        },
        takes_config=False,
    ),
    "score": Command(
        "scores of labelled pairs in one table: controls and a language model's YES against NO, with intervals",
        commands.score,
        ("score", "yes_no"),
        {
            "--train": {
                "action": "store_true",
                "help": "train a model on the pairs of the train users first (section yes_no)",
                "alone_reads": "yes_no",
            },
            "--merge": _path(
                "RUN", "folders of runs whose models are shown too, scored on the same pairs", nargs="+", default=[]
            ),
        },
    ),
    "levels": Command(
        "accuracy per SID level of a predictions file: tables, levels.json and levels.png",
        commands.levels,
        options=_LEVELS,
        takes_config=False,
    ),
    "slices": Command(
        "where each recommender of a run wins: a metric on items per part of the split, with paired differences",
        commands.slices,
        options=_SLICES,
        takes_config=False,
    ),
    "gap": Command(
        "runs compared with the published tables: gaps, noise, causes", commands.gap, options=_GAP, takes_config=False
    ),
    "serve": Command("a run's model over HTTP: page, lists, metrics", commands.serve, ("serve",), _MODEL),
    "presets": Command(
        "the configurations that ship with the package, one line each", commands.list_presets, takes_config=False
    ),
    "completion": Command(
        "the script for tab completion: minionerec completion bash > ~/.local/share/bash-completion/completions/minionerec",
        commands.print_completion,
        options={"shell": {"choices": ("bash", "zsh"), "help": "the shell that you use"}},
        takes_config=False,
    ),
}
