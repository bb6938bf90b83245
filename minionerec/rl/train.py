"""Stage `rl`: GRPO from the SFT model, with ranked beams as rollouts and the ranking reward.

Inputs: `data/`, `sid/` and `sft/model/` of the run, and `baselines/` for the collaborative reward. Outputs: `rl/model/`
(safetensors, tokenizer and model card), the model that was best on valid; `rl/log.jsonl` (rewards, KL, hits and validations by
step), `rl/curves.html` (the same, drawn).

Deviations from the paper: rollouts come from the decoder that evaluation uses, on the prompts that SFT used, and leave out what
evaluation leaves out; the target travels with its row; the KL is the plain k3 estimate to the SFT model, which stays unless
`rl.sync_reference` moves it; a prompt is computed once for its group (same log-probabilities); prompts are drawn from the tasks
at random and not from all rows.

Command: `minionerec rl --config ml-100k`, or `bash scripts/rl.sh --config NAME`.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerState, set_seed

from minionerec.artifacts import (
    CHECKPOINTS,
    ITEM_STAGES,
    Manifest,
    check_disk_space,
    content_hash,
    is_current,
    require,
    write_artifact,
)
from minionerec.config import RECOMMENDING, Config, RlConfig
from minionerec.data.dataset import Dataset
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import ConfigError
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.prompts.record import check_prompts, prompts_section
from minionerec.recommend.recommender import Recommender
from minionerec.rl import rewards
from minionerec.rl.arguments import grpo_arguments, split_prompts
from minionerec.rl.exact import ExactTrainer
from minionerec.rl.monitor import Evaluator, Watch, best
from minionerec.rl.objectives import KeepReference, ListwiseTrainer, ObjectiveTrainer
from minionerec.rl.plan import work
from minionerec.rl.rewards import Reward
from minionerec.rl.rollouts import Rollouts
from minionerec.rl.rows import token_rows, training_prompts
from minionerec.rl.targets import with_targets
from minionerec.rl.trainer import SETUP_MEMORY_ADVICE, TreeGRPOTrainer, grouped
from minionerec.sid.index import SidIndex
from minionerec.training import card, plan
from minionerec.training.checkpoints import MarkComplete, last_checkpoint, write_log
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.launch import keep_tensorboard, launch_of
from minionerec.training.memory import enough_memory
from minionerec.training.progress import StepBar
from minionerec.tree import CatalogTrie

log = logging.getLogger(__name__)


def warn_if_normalised_otherwise(sft: Manifest, config: RlConfig) -> None:
    """Warn where the SFT model was trained with probabilities that add up over something else than here."""
    trained = sft.config["sft"]["normalise_over"]
    if trained != config.normalise_over:
        log.warning(
            "The SFT model was trained with sft.normalise_over %s, but rl.normalise_over is %s: its "
            "probabilities mean something else here, and the KL is to a model that nobody trained. "
            "Set rl.normalise_over %s unless you mean it.",
            *(trained, config.normalise_over, trained),
        )


def make_trainer(
    config: RlConfig,
    trie: CatalogTrie,
    functions: dict[str, Reward],
    *,
    seed: int,
    filtered: bool = False,
    **arguments: Any,
) -> TreeGRPOTrainer:
    """The trainer of the objective.

    Args:
        trie: the valid SIDs, on the model's device.
        functions: the rewards by name, in the order of `rl.rewards`.
        seed: of what rollouts draw.
        filtered: the rows have a column `hidden`, whose items no group holds.
        arguments: of TreeGRPOTrainer.
    """
    arguments["reward_funcs"] = [grouped(name, function, config.num_generations) for name, function in functions.items()]
    arguments |= {"trie": trie, "normalise_over": config.normalise_over}
    if config.objective == "exact":
        weights = list(config.rewards.values())
        return ExactTrainer(rewards=functions, weights=weights, sft_weight=config.sft_weight, **arguments)
    pad_token = arguments["processing_class"].pad_token_id
    trainer_class = ObjectiveTrainer if config.objective == "grpo" else ListwiseTrainer
    return trainer_class(config=config, rollout_func=Rollouts(trie, config, pad_token, seed, filtered=filtered), **arguments)


def run(config: Config, draw: Callable[[Path, Path, str], None] | None = None) -> tuple[Manifest, bool]:
    """Train, unless the finished artefact is current; returns its manifest and whether it was made anew.

    Args:
        draw: writes the curves of a log (first) as a page (second) with a title (third); None for no page.

    Raises:
        ArtifactError: an input is missing, or the disk cannot hold the checkpoints.
        CatalogError: the SFT checkpoint lacks the catalog's SID tokens.
        ConfigError: see `split_prompts`, `training_prompts`, `check_group` and `launch_of`.
        DataError: the valid split is empty, and validations are asked for.
        TrainingError: see `TreeGRPOTrainer.train`.
    """
    folder = config.folder / "rl"
    inputs = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
    sft = require(config.folder / "sft", "minionerec sft", made_from=inputs)
    inputs |= {"sft": sft.digest, **rewards.sources(config, inputs["data"])}
    asked = config.resolved_prompts.for_training()
    filtered = config.eval.exclude_history
    sections = {
        **config.section("rl"),
        "prompts": prompts_section(asked, [RECOMMENDING, *config.rl.tasks]),
        "rollouts": {"exclude_history": filtered},
    }
    if config.rl.evaluations:
        sections |= {"validation": config.decoding}
    key = content_hash({"config": {**sections, **config.key_fields("rl")}, "seed": config.seed, "inputs": inputs})
    if is_current(folder, key):
        return Manifest.load(folder), False
    split_prompts(config.rl)  # refuses before anything is loaded
    check_prompts(sft.config, asked, str(config.folder / "sft"))
    warn_if_normalised_otherwise(sft, config.rl)
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    set_seed(config.seed)
    origin = config.folder / "sft" / "model"
    model, tokenizer = checkpoint.load(str(origin))  # TRL reads the reference model from the same folder
    prompts = Prompts(dataset, index, tokenizer, asked, checkpoint.context_of(model))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # The model, the best so far and the one that replaces it; of the last and the next checkpoint weights, two moments and,
    # where it moves, the reference model.
    check_disk_space(folder, parameters * 4 * (9 if config.rl.sync_reference is None else 11))
    trie = CatalogTrie.from_codes(prompts.sid_tokens, distributed_state().device)
    examples = with_targets(training_prompts(config, prompts), config.rl, prompts)
    rows = token_rows(examples, trie, dataset if filtered else None)
    check_group(config.rl, trie, max(map(len, rows["hidden"])) if filtered else 0)
    functions = rewards.build(config, dataset, [trie.items(leaf) for leaf in range(len(trie))])
    evaluator: Evaluator = dict  # without validations it is never called
    if config.rl.evaluations:
        recommender = Recommender(model.to(distributed_state().device), prompts, trie)
        evaluator = RankingEvaluator(recommender, config.eval, config.rl.valid_examples, config.rl.best_metric)
    with write_artifact(
        folder,
        stage="rl",
        key=key,
        config=sections,
        inputs=inputs,
        seed=config.seed,
        resumable=True,
        collective=True,
    ) as draft:
        checkpoints = draft.path / CHECKPOINTS
        keep_tensorboard(config.folder / "tensorboard" / "rl", config.rl.report_to)
        arguments = grpo_arguments(config.rl, index.levels, config.seed, checkpoints, len(rows))
        devices = plan.launched(config.rl.bf16, config.rl.gradient_checkpointing)
        planned = plan.Plan("rl", plan.Shape.of(model), work(examples, trie, arguments, config.rl), devices)
        planned.show()
        watch = Watch(config.rl, evaluator, tokenizer, checkpoints, origin)
        with enough_memory(lambda: SETUP_MEMORY_ADVICE):
            trainer = make_trainer(
                config.rl,
                trie,
                functions,
                seed=config.seed,
                filtered=filtered,
                model=model,
                args=arguments,
                train_dataset=rows,
                processing_class=tokenizer,
                watch=watch,
            )
        launched = launch_of(trainer.accelerator)
        if is_main_process():
            micro = arguments.per_device_train_batch_size // config.rl.num_generations
            print(f"rl on {launched}, prompts per process: {micro} x {arguments.gradient_accumulation_steps}", flush=True)
        _train(trainer, watch, config.rl, last_checkpoint(checkpoints))
        chosen = best(trainer.state.log_history, config.rl.best_metric)
        if chosen is not None:
            trainer.state.log_history.append(_verdict(config.rl, chosen, trainer.state))
        figures: dict[str, float] = {
            "parameters": parameters,
            "prompts": len(rows),
            "steps": trainer.state.global_step,
            "devices": trainer.accelerator.num_processes,
        }
        if chosen is not None:
            figures |= {"best_step": chosen[0], f"best valid {config.rl.best_metric}": chosen[1]}
        if trainer.is_world_process_zero():
            if chosen is None:
                checkpoint.save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, draft.path / "model")
            else:
                shutil.copytree(watch.best_model(trainer.state.log_history), draft.path / "model")
            card.write(draft.path / "model", "rl", config, dataset, index, figures)
            write_log(trainer.state, draft.path / "log.jsonl")
            if draw is not None:
                draw(draft.path / "log.jsonl", draft.path / "curves.html", f"{config.name}: RL")
        draft.metrics.update(**figures, **planned.metrics())
    return Manifest.load(folder), True


def check_group(config: RlConfig, trie: CatalogTrie, hidden: int) -> None:
    """Refuse a group of distinct SIDs for which the catalog does not suffice.

    Args:
        trie: the valid SIDs.
        hidden: most items that are hidden from a prompt.
    """
    left = len(trie) - hidden  # at least: items that share a SID hide one between them
    if left < config.num_generations and config.rollouts != "sampling" and config.objective != "exact":
        without = f", and {hidden} items of a history are left out (eval.exclude_history)" if hidden else ""
        raise ConfigError(
            f"rl.num_generations is {config.num_generations}, but the catalog has only {len(trie)} SIDs{without}; lower it."
        )


def _train(trainer: TreeGRPOTrainer, watch: Watch, config: RlConfig, last: str | None) -> None:
    """Train to the end, from the checkpoint `last` where there is one."""
    if config.sync_reference is not None:
        keeper = KeepReference(trainer)
        trainer.add_callback(keeper)
        if last is not None:
            keeper.restore(last)
    trainer.add_callback(MarkComplete())
    StepBar.install(trainer, "rl")
    stopped = TrainerState.load_from_json(f"{last}/trainer_state.json") if last else None
    if stopped is not None and watch.is_over(stopped.log_history):  # interrupted after the last step, before the end
        trainer.state = stopped
    else:
        trainer.train(resume_from_checkpoint=last)


def _verdict(config: RlConfig, chosen: tuple[int, float], state: TrainerState) -> dict[str, float]:
    """The log's last row: which step's model was kept; said in words where it is the SFT model."""
    step, value = chosen
    if step == 0:
        log.warning(
            "No step of rl has a higher %s on valid than the SFT model (%.4f): rl/model holds the SFT model's weights.",
            *(config.best_metric, value),
        )
    return {"step": state.global_step, "best_step": step, f"best_{config.best_metric}": value}
