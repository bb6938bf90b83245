"""Export a trained model as one folder that recommends without its run: here, in transformers, or in another engine."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from minionerec.artifacts import ITEM_STAGES, MANIFEST, UNSEEDED, Manifest, Recipe, foreign_content, read_json, require
from minionerec.config.differences import recipe_changes
from minionerec.data.dataset import SplitName
from minionerec.errors import ArtifactError, ConfigError, DataError
from minionerec.model.item_text import item_text_model
from minionerec.prompts.record import prompts_section
from minionerec.recommend import bundle, check
from minionerec.recommend.export_card import write_export_card
from minionerec.recommend.loading import has_mixture, trained_stage
from minionerec.recommend.recommender import Recommender
from minionerec.tree import Branch, pack, tree_logprobs, without_padding

EngineName = Literal["hf", "vllm", "sglang", "flashrec"]
GOLDEN_PROMPTS = 64
_FLASHREC = "flashrec.json"  # the SIDs as FlashRec reads them
_LISTS = ("num_beams", "normalise_over", "exclude_history", "batch_size")  # fields of `eval` that decide how lists are made


def export(
    run: str | Path,
    to: str | Path,
    engine: EngineName = "hf",
    stage: str | None = None,
    *,
    replace: bool = False,
    model_alone: bool = False,
) -> bool:
    """Write a run's model with everything that recommending needs into a folder.

    Args:
        run: the run's folder, such as `runs/ml-100k`.
        to: the new folder. It appears when it is complete.
        engine: what will serve the folder; it must be able to.
        stage: `sft` or `rl`; None for `rl` if the run has it, else `sft`.
        replace: another export in the same place may be replaced. Any other folder never is.
        model_alone: leave out what is mixed into the lists of the run (`minionerec mixture`).

    Returns:
        whether it was written now; False if an equal export was there.

    Raises:
        ArtifactError: an artefact of the run is missing or damaged, or the folder cannot be written.
        ConfigError: the engine cannot serve this model, a mixture would be left out unasked, or `to` is in use.
        DataError: the run has no example to make golden lists of.
    """
    run, to = Path(run), Path(to)
    _check_target(to, run)
    stage = trained_stage(run, stage)
    trained = require(run / stage, f"minionerec {stage}")
    if has_mixture(run, stage) and not model_alone:
        raise ConfigError(
            f"{run / 'mixture' / stage}: the lists of this run are of the model and what is mixed in. An export cannot hold "
            "what is counted: its users' interactions. Pass --no-mixture to export the model alone, whose lists are others."
        )
    recommender = Recommender.load(run, stage, dtype="float32", mixture=False)  # golden lists do not depend on `eval.dtype`
    refused = refusals(recommender)
    if engine in refused:
        way_out = "Serve" if "hf" in refused else "Export for hf, or serve"
        raise ConfigError(f"--for {engine}: {refused[engine]} {way_out} the run with minionerec serve.")
    serving = _serving(recommender, trained, refused, run.resolve().name, stage)
    inputs = {name: require(run / name, command).digest for name, command in ITEM_STAGES.items()} | {stage: trained.digest}
    recipe = Recipe("export", to, {"export": {"for": engine}, "serving": serving}, inputs, UNSEEDED, replace=replace)
    if bundle.is_bundle(to) and not _must_be_written(recipe):
        return False
    with recipe.write() as draft:
        _write(draft.path, recommender, run / stage / "model", serving, engine)
        draft.metrics = {"items": serving["items"], "sids": serving["sids"]}
    return True


def push(folder: str | Path, name: str) -> str:
    """Upload an exported folder to the model hub, into a private repository that is made if it does not exist.

    Args:
        name: of the repository, such as `user/ml-100k`.

    Returns:
        the address of the commit.

    Raises:
        ArtifactError: this is no exported folder, or the hub refuses or cannot be reached.
        ConfigError: this is no name of a repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not bundle.is_bundle(Path(folder)):
        raise ArtifactError(f"{folder}: not an exported folder (it has no {bundle.SERVING}).")
    hub = HfApi()
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Exported by MiniOneRec"))
    except HFValidationError as error:
        raise ConfigError(f"--push {name}: {str(error).splitlines()[0]} Expected a name such as user/ml-100k.") from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArtifactError(
            f"--push {name}: {reason}. {folder} is complete; log in (hf auth login) and run the command again."
        ) from None


def _check_target(to: Path, run: Path) -> None:
    """Refuse a folder that holds anything but an export, whatever `--replace` says.

    Raises:
        ConfigError: it does, or it is a file, or the run itself is an export.
    """
    if bundle.is_bundle(run):
        raise ConfigError(f"--run {run}: an exported folder already. Copy it, or name the run that it came from.")
    kind = None if bundle.is_bundle(to) else foreign_content(to, bundle.SERVING)
    if kind is not None:
        raise ConfigError(f"--to {to}: expected a new folder or an earlier export, found {kind}. Nothing was changed.")


def _must_be_written(recipe: Recipe) -> bool:
    """Whether an export differs from the one in its folder.

    Raises:
        ConfigError: it does, or the one in the folder is damaged, and it may not be replaced.
    """
    before = read_json(recipe.folder / MANIFEST)
    now = {"config": recipe.config, "seed": recipe.seed, "inputs": recipe.inputs}
    changes = recipe_changes(before, now, set())
    try:
        bundle.load_manifest(recipe.folder)
    except ArtifactError as error:
        changes.append(str(error))
    if changes and not recipe.replace:
        listed = "\n".join(f"  {line}" for line in changes)
        raise ConfigError(
            f"--to {recipe.folder}: holds another export:\n{listed}\nNothing was changed. Pass --replace to replace it, or "
            "choose another folder."
        )
    return bool(changes)


def refusals(recommender: Recommender) -> dict[str, str]:
    """The engines that cannot serve a model as it was trained to be served, each with the reason."""
    index, over = recommender.prompts.index, recommender.config.normalise_over
    general: list[str] = []
    if item_text_model(recommender.model) is not None:
        reason = "this model reads its items' text vectors (model.text_input, model.text_output), which it cannot compute."
        return dict.fromkeys(get_args(EngineName), reason)
    if over == "catalog":
        general.append(
            "its beam search ranks by probabilities over the whole vocabulary, and this model's scores are probabilities over "
            "the legal next codes (eval.normalise_over: catalog)."
        )
    if (index.codes < 0).any():
        general.append("its beam search writes equally many tokens in every beam, and this catalog has SIDs of unequal length.")
    reasons = {"vllm": general, "sglang": general, "flashrec": [*general, *_flashrec_refusals(recommender)]}
    return {engine: " ".join(found) for engine, found in reasons.items() if found}


def _flashrec_refusals(recommender: Recommender) -> Iterator[str]:
    if recommender.model.config.model_type != "qwen3":
        yield f"it runs dense Qwen3 models only, and this is a {recommender.model.config.model_type}."
    if _begin_token(recommender) is None:
        yield (
            "it appends a begin token to every prompt that does not end in one, and this model's prompts "
            f"(prompts.style {recommender.prompts.config.style}) end in the history's last code."
        )
    tokens = _token_ids(recommender)
    if tokens != list(range(tokens[0], tokens[0] + len(tokens))):
        yield "it expects the SID tokens at consecutive ids, level after level, and this tokenizer has them elsewhere."


def _token_ids(recommender: Recommender) -> list[int]:
    vocabulary = recommender.prompts.tokenizer.get_vocab()
    return [vocabulary[token] for token in recommender.prompts.index.token_strings()]


def _begin_token(recommender: Recommender) -> int | None:
    """The token that ends every prompt; None if prompts end in a history's last code."""
    token = recommender.prompts.ask([0])[-1]
    return None if token in set(_token_ids(recommender)) else token


def _serving(recommender: Recommender, trained: Manifest, refused: dict[str, str], name: str, stage: str) -> dict[str, Any]:
    """What `serving.json` says: how to ask the model, and how to search."""
    prompts, lists = recommender.prompts, asdict(recommender.config)
    return {
        "format": bundle.FORMAT,
        "run": name,
        "stage": stage,
        "model": trained.digest,
        "items": len(recommender.items.ids),
        "sids": len(recommender.trie),
        "levels": recommender.trie.levels,
        **{field: lists[field] for field in _LISTS},
        "max_history": recommender.max_history,
        "context": prompts.context,
        "prompt": prompts.template(),
        "prompts": prompts_section(prompts.config, trained.config["prompts"]["words"]),
        "refused": refused,
    }


def _write(folder: Path, recommender: Recommender, model: Path, serving: dict[str, Any], engine: EngineName) -> None:
    for path in sorted(model.iterdir()):
        if path.name not in (bundle.CARD, MANIFEST):
            shutil.copyfile(path, folder / path.name)  # not its permissions: weights were written for their owner alone
    recommender.trie.save(folder / bundle.TRIE)
    index, tokenizer = recommender.prompts.index, recommender.prompts.tokenizer
    bundle.write_sids(folder / bundle.SIDS, index, recommender.items.ids, tokenizer.get_vocab())
    bundle.write_catalog(folder / bundle.CATALOG, recommender.items.catalog, recommender.popularity)
    if engine == "flashrec":
        serving = {**serving, "flashrec": _flashrec_layout(recommender)}
        codes = {",".join(map(str, row)): 1 for row in index.codes.tolist()}
        (folder / _FLASHREC).write_text(json.dumps(codes) + "\n", encoding="utf-8")
    bundle.write_json(folder / bundle.SERVING, serving)
    with (folder / bundle.GOLDEN).open("w", encoding="utf-8") as stream:
        for line in golden_lines(recommender):
            stream.write(json.dumps(line) + "\n")
    shutil.copyfile(Path(check.__file__), folder / "check.py")
    write_export_card(folder / bundle.CARD, model / bundle.CARD, serving, engine)


def _flashrec_layout(recommender: Recommender) -> dict[str, str]:
    tokens, begin = _token_ids(recommender), _begin_token(recommender)
    return {
        "token_range": f"{tokens[0]}:{tokens[-1]}",
        "codebook_sizes": ",".join(map(str, recommender.prompts.index.codebook_sizes)),
        "boundary_tokens": f"{begin},{begin}",  # the second is never written: a search ends with the last code
    }


def golden_lines(recommender: Recommender, count: int = GOLDEN_PROMPTS) -> Iterator[dict[str, Any]]:
    """Prompts of held-out histories with the lists that the recommender makes of them, without filters.

    Args:
        count: at most so many, evenly spaced over the evaluated split.

    Raises:
        DataError: the dataset has no example.
    """
    dataset = recommender.prompts.dataset
    splits: tuple[SplitName, ...] = (recommender.config.split, "test", "valid", "train")
    examples = next((dataset.split(name) for name in splits if len(dataset.split(name))), None)
    if examples is None:
        raise DataError("The run's data has no example, and golden lists need histories. Prepare data with interactions.")
    count = min(count, len(examples))
    rows = [number * len(examples) // count for number in range(count)]
    for history in examples["history"].gather(rows).to_list():
        prompt = recommender.prompts.ask(history)
        result = recommender.search([history], num_beams=min(recommender.config.num_beams, len(recommender.trie)))
        sids = [
            without_padding(sid) for sid, leaf in zip(result.tokens[0], result.leaves[0].tolist(), strict=True) if leaf >= 0
        ]
        yield {
            "history": [recommender.items.ids[item] for item in history],
            "prompt": prompt,
            "exact": bool(result.exact[0]),
            "sids": sids,
            "scores": result.scores[0, : len(sids)].tolist(),
            "levels": token_logprobs(recommender, prompt, sids),
        }


@torch.no_grad()
def token_logprobs(recommender: Recommender, prompt: Sequence[int], sids: Sequence[Sequence[int]]) -> list[list[float]]:
    """The log-probability of each token of some SIDs after a prompt; those of a SID add up to its score."""
    trie = recommender.trie if recommender.config.normalise_over == "catalog" else None
    branches = [Branch(prompt, sid) for sid in sids]
    batch = pack(branches, row_tokens=len(prompt) + sum(map(len, sids)), trie=trie).to(recommender.model.device)
    logprobs = iter(tree_logprobs(recommender.model, batch, trie=trie).logprobs.tolist())
    return [[next(logprobs) for _ in sid] for sid in sids]
