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
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerState

from minionerec.artifacts import CHECKPOINTS, ITEM_STAGES, Manifest, Recipe, check_disk_space, require
from minionerec.config import RECOMMENDING, Config, RlConfig
from minionerec.distributed import distributed_state
from minionerec.model import checkpoint
from minionerec.prompts.record import check_prompts, prompts_section
from minionerec.recommend.cache.sequential import component_baseline
from minionerec.recommend.cache.vectors import component_texts
from minionerec.rl.arguments import grpo_arguments, split_prompts
from minionerec.rl.brake import KlBrake
from minionerec.rl.early import check_early, check_group, check_one_distribution, hides_history
from minionerec.rl.exact import ExactTrainer
from minionerec.rl.monitor import Watch, best, validations
from minionerec.rl.objectives import KeepReference, ListwiseTrainer, ObjectiveTrainer
from minionerec.rl.plan import disk_bytes, plan_of, planned_work, validation_of
from minionerec.rl.rewards import Reward, build_rewards, reward_sources
from minionerec.rl.rollouts import Rollouts
from minionerec.rl.rows import token_rows, training_prompts
from minionerec.rl.targets import with_targets
from minionerec.rl.trainer import SETUP_MEMORY_ADVICE, TreeGRPOTrainer, grouped
from minionerec.training.checkpoints import MarkComplete, last_checkpoint
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.holdout import check_holdout, rl_split
from minionerec.training.launch import keep_tensorboard
from minionerec.training.machine import warn_about_memory
from minionerec.training.memory import enough_memory
from minionerec.training.plan import Shape, launched
from minionerec.training.progress import StepBar
from minionerec.training.stage import Begun, WriteCurves, announce, begin, finish
from minionerec.tree import CatalogTrie
from minionerec.tree.architecture import check_length

log = logging.getLogger(__name__)


def train_rl(config: Config, write_curves: WriteCurves | None = None) -> tuple[Manifest, bool]:
    """Train, unless the finished artefact is current; returns its manifest and whether it was made anew.

    Args:
        write_curves: writes the page of the log's curves; None for no page.

    Raises:
        ArtifactError: an input is missing, or the disk cannot hold the checkpoints.
        CatalogError: the SFT checkpoint lacks the catalog's SID tokens.
        ConfigError: the options do not fit the launch, the catalog or the SFT model, or they would replace a model trained with
            others.
        DataError: the valid split is empty, and validations are asked for.
        LockedError: another process trains this run's policy.
        TrainingError: the policy diverges, or the memory does not suffice.
    """
    recipe = rl_recipe(config)
    return recipe.make(lambda: _train_policy(config, recipe, write_curves), collective=True)


def _train_policy(config: Config, recipe: Recipe, write_curves: WriteCurves | None) -> None:
    rl = config.rl
    check_early(config)
    split_prompts(rl)  # this too refuses before anything is loaded
    sft = Manifest.load(config.folder / "sft")
    check_sft(sft, config)
    origin = config.folder / "sft" / "model"  # TRL reads the reference model from the same folder
    begun = begin(config, "rl", lambda dataset, index: checkpoint.load(str(origin)))
    _check_disk(begun)
    trie = CatalogTrie.from_codes(begun.prompts.sid_tokens, distributed_state().device)
    examples = with_targets(training_prompts(config, begun.prompts), rl, begun.prompts)
    longest = max(len(example.prompt) for example in examples) + trie.depth - 1
    check_length(begun.model, longest)
    hides = hides_history(config)
    rows = token_rows(examples, trie, begun.prompts.dataset if hides else None, rl_split(config))
    check_group(rl, len(trie), max(map(len, rows["hidden"])) if hides else 0)
    functions = build_rewards(config, begun.prompts.dataset, [trie.items(leaf) for leaf in range(len(trie))])
    evaluator = _evaluator(begun, trie)
    with recipe.write(resumable=True, collective=True) as draft:
        checkpoints = draft.path / CHECKPOINTS
        keep_tensorboard(config.folder / "tensorboard" / "rl", rl.report_to)
        arguments = grpo_arguments(rl, trie.levels, config.seed, checkpoints, len(rows))
        validation = validation_of(config, begun.model, examples, begun.prompts.index.codes.shape)
        work = planned_work(examples, trie, arguments, rl, validation)
        devices = launched(rl.bf16, rl.gradient_checkpointing)
        check_length(begun.model, longest, work.longest_row)
        plan = plan_of(Shape.of(begun.model), work, devices, rl)
        plan.show()
        warn_about_memory(plan)
        watch = Watch(rl, dict if evaluator is None else evaluator, begun.prompts.tokenizer, checkpoints, origin)
        with enough_memory(lambda: SETUP_MEMORY_ADVICE):
            trainer = make_trainer(
                rl,
                trie,
                functions,
                seed=config.seed,
                filtered=config.eval.exclude_history,
                graphs=config.eval.by_graphs,
                evaluator=evaluator,
                model=begun.model,
                args=arguments,
                train_dataset=rows,
                processing_class=begun.prompts.tokenizer,
                watch=watch,
                brake=KlBrake.of(rl, _is_pretrained(sft)),
            )
        announce(begun, trainer, f"{work.micro} prompts x {work.accumulation} micro-batches per process and step")
        _train(trainer, watch, rl, last_checkpoint(checkpoints))
        figures = {"parameters": begun.parameters, "prompts": len(rows), **_figures(trainer, rl)}
        finish(begun, draft, trainer, plan, figures, partial(_save, begun, trainer, watch), write_curves)


def rl_recipe(config: Config) -> Recipe:
    """What the stage's artefact is made from.

    Raises:
        ArtifactError: an input is missing, or was made from other data or SIDs.
    """
    inputs = _inputs(config)
    # The brake as it is, not as it is asked for: that of a model from scratch is null, as it was before there was `auto`.
    brake = {"kl_brake": config.rl.kl_limit(_is_pretrained(Manifest.load(config.folder / "sft")))}
    sections = {
        "rl": config.section("rl")["rl"] | brake,
        "prompts": prompts_section(config.prompts_for_training, [RECOMMENDING, *config.rl.tasks]),
        "rollouts": {"exclude_history": config.eval.exclude_history},
    }
    if config.rl.evaluations:
        sections["validation"] = config.decoding()
    if config.rl.bf16 and config.rl.decodes:  # absent otherwise, as it was when all rollouts were in the format of the weights
        sections["precision"] = {"rollouts": "bfloat16"}
    sections |= component_texts(config, "rl")[0]
    return Recipe(
        stage="rl",
        folder=config.folder / "rl",
        config=sections,
        inputs=inputs,
        seed=config.seed,
        key_fields={**sections, "rl": config.key_fields("rl")["rl"] | brake},
        replace=config.replace,
        wait=config.wait,
        reread=partial(_inputs, config),
    )


def _inputs(config: Config) -> dict[str, str]:
    """Digests of data, SIDs, the SFT model, and what rewards and validations read."""
    inputs = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
    inputs["sft"] = require(config.folder / "sft", "minionerec sft", made_from=inputs).digest
    inputs |= component_texts(config, "rl")[1] | component_baseline(config, "rl", inputs["data"])
    return inputs | reward_sources(config, inputs["data"])


def check_sft(sft: Manifest, config: Config) -> None:
    """Compare the prompts, the rows and the probabilities of SFT and RL.

    Raises:
        ConfigError: it was trained with other prompts, left out other rows, or has a second distribution, whatever this command
            says of it.
    """
    check_one_distribution(bool(sft.config.get("model", {}).get("text_output")))
    check_prompts(sft.config, config.prompts_for_training, str(config.folder / "sft"))
    check_holdout(sft, config)
    warn_if_normalised_otherwise(sft, config.rl)


def _is_pretrained(sft: Manifest) -> bool:
    """Whether SFT began with a pretrained model."""
    return bool(sft.config.get("model", {}).get("init") == "from_pretrained")


def warn_if_normalised_otherwise(sft: Manifest, config: RlConfig) -> None:
    """Warn if SFT normalised its probabilities over another set of tokens than RL does."""
    of_sft = sft.config["sft"]["normalise_over"]
    if of_sft != config.normalise_over:
        advice = f"Train SFT with sft.normalise_over {config.normalise_over}"
        if config.objective != "exact":  # which is over the catalog
            advice = f"Set rl.normalise_over {of_sft}"
        log.warning(
            "The SFT model was trained with sft.normalise_over %s, but rl.normalise_over is %s: its probabilities mean "
            "something else here, and the KL is measured from a model that nobody trained. %s unless you mean it.",
            *(of_sft, config.normalise_over, advice),
        )


def make_trainer(
    config: RlConfig,
    trie: CatalogTrie,
    functions: dict[str, Reward],
    *,
    seed: int,
    filtered: bool = False,
    graphs: bool = True,
    evaluator: RankingEvaluator | None = None,
    **arguments: Any,
) -> TreeGRPOTrainer:
    """The trainer of the objective.

    Args:
        trie: the valid SIDs, on the model's device.
        functions: the rewards by name, in the order of `rl.rewards`.
        seed: of what rollouts draw.
        filtered: the rows have a column `hidden`, whose items no group holds.
        graphs: beams are searched by CUDA graphs on a GPU.
        evaluator: of the policy, with which rollouts share what they can; None without validations.
        arguments: of TreeGRPOTrainer.
    """
    arguments["reward_funcs"] = [grouped(name, function, config.num_generations) for name, function in functions.items()]
    arguments |= {"trie": trie, "normalise_over": config.normalise_over}
    if config.objective == "exact":
        weights = list(config.rewards.values())
        arguments |= {"sft_weight": config.sft_weight, "entropy_bonus": config.entropy_bonus}
        return ExactTrainer(rewards=functions, weights=weights, **arguments)
    pad_token = arguments["processing_class"].pad_token_id
    trainer_class = ObjectiveTrainer if config.objective == "grpo" else ListwiseTrainer
    rollouts = Rollouts(trie, config, pad_token, seed, filtered=filtered, graphs=graphs, evaluator=evaluator)
    return trainer_class(config=config, rollout_func=rollouts, **arguments)


def _check_disk(begun: Begun) -> None:
    """Refuse a disk that cannot hold the models and checkpoints of the run."""
    needed = disk_bytes(begun.parameters, begun.config.rl.sync_reference is not None)
    check_disk_space(begun.config.folder / "rl", needed)


def _evaluator(begun: Begun, trie: CatalogTrie) -> RankingEvaluator | None:
    """What measures the policy on valid; None if `rl.evaluations` is 0."""
    config = begun.config
    if not config.rl.evaluations:
        return None
    examples, metric = config.rl.valid_examples, config.rl.best_metric
    return RankingEvaluator.in_training(config, begun.model, begun.prompts, examples, metric, trie)


def _train(trainer: TreeGRPOTrainer, watch: Watch, config: RlConfig, last: str | None) -> None:
    """Train to the end, from the checkpoint `last` unless it is None."""
    if config.sync_reference is not None:
        keeper = KeepReference(trainer)
        trainer.add_callback(keeper)
        if last is not None:
            keeper.restore(last)
    trainer.add_callback(MarkComplete(watch.best_model))
    StepBar.install(trainer, "rl")
    stopped = TrainerState.load_from_json(f"{last}/trainer_state.json") if last else None
    if stopped is not None and watch.is_over(stopped.log_history):  # interrupted after the last step, before the end
        trainer.state = stopped
    else:
        trainer.train(resume_from_checkpoint=last)


def _figures(trainer: TreeGRPOTrainer, config: RlConfig) -> dict[str, Any]:
    """What the run amounted to; the best step also becomes the log's last row."""
    state = trainer.state
    figures: dict[str, Any] = {"steps": state.global_step, "devices": trainer.accelerator.num_processes}
    best_validation = best(state.log_history, config.best_metric)
    if best_validation is None:
        return figures
    step, value = best_validation
    if step == 0:
        log.warning(
            "No step of rl has a higher %s on valid than the SFT model (%.4f): rl/model holds the SFT model's weights.",
            *(config.best_metric, value),
        )
    state.log_history.append({"step": state.global_step, "best_step": step, f"best_{config.best_metric}": value})
    return figures | {"best_step": step, f"best valid {config.best_metric}": value}


def _save(begun: Begun, trainer: TreeGRPOTrainer, watch: Watch, folder: Path) -> None:
    """Save the best model; without validations, the last one."""
    history = trainer.state.log_history
    if validations(history, begun.config.rl.best_metric):
        shutil.copytree(watch.best_model(history), folder)
    else:
        checkpoint.save(trainer.accelerator.unwrap_model(trainer.model), begun.prompts.tokenizer, folder)
