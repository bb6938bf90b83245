"""Runs stages in order. A stage whose config and inputs are unchanged is skipped."""

import dataclasses
import logging
import os
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from minionerec.artifacts import MANIFEST, Manifest
from minionerec.artifacts.ray_engine import check_engine
from minionerec.config import PLAIN_FLOORS, VECTOR_BASELINES, Config, run_file
from minionerec.config.extras import check_packages
from minionerec.config.fields import did_you_mean
from minionerec.distributed import (
    Engine,
    available_cores,
    expect_no_gpu,
    is_main_process,
    other_work,
    use_engine,
    wait_for_everyone,
)
from minionerec.errors import ArtifactError, ConfigError

log = logging.getLogger(__name__)

# Stages are imported when they run: `--help` and `--print_config` must not wait for torch.
Finished = tuple[Manifest, bool]  # the artefact, and whether it was made anew


def quieten_libraries() -> None:
    """Keep the libraries' own bars and warnings off the screen: the stages print what a user needs to know."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU, wherever it is installed


def _data(config: Config) -> Iterator[Finished]:
    from minionerec.data import prepare

    yield prepare.prepare_data(config)


def _pairs(config: Config) -> Iterator[Finished]:
    from minionerec.data import prepare_pairs

    yield from _on_main(lambda: prepare_pairs.prepare_pairs(config))


def _yes_no(config: Config) -> Iterator[Finished]:
    from minionerec.scoring.train import train_yes_no

    quieten_libraries()
    yield train_yes_no(config)


def _score(config: Config) -> Iterator[Finished]:
    from minionerec.eval.pair_leaderboard import write_leaderboard
    from minionerec.scoring.controls import score_controls

    quieten_libraries()
    yield from _on_main_each(lambda: score_controls(config))
    if config.score.model is not None:
        from minionerec.scoring.yes_no import score_zero_shot

        yield score_zero_shot(config)
    if config.score.encoder is not None:
        from minionerec.scoring.matching import score_matching

        yield from score_matching(config)
    if any((config.folder / "yes-no").glob(f"*/{MANIFEST}")):
        from minionerec.scoring.models import trained_models
        from minionerec.scoring.trained import score_trained

        for name in trained_models(config)[0]:
            yield score_trained(config, name)
    if (config.folder / "lego" / "pairs").is_dir():
        from minionerec.legommenders.train import score_lego, trained_on_pairs

        for title in trained_on_pairs(config):
            yield from _on_main(partial(score_lego, config, title))
    yield from _on_main(lambda: write_leaderboard(config))


def _sid(config: Config) -> Iterator[Finished]:
    from minionerec.sid import build

    quieten_libraries()
    yield build.build_sids(config)


def _sft(config: Config) -> Iterator[Finished]:
    from minionerec.report import curves
    from minionerec.sft.train import train_sft

    quieten_libraries()
    yield train_sft(config, curves.write_curves)


def _rl(config: Config) -> Iterator[Finished]:
    from minionerec.report import curves
    from minionerec.rl.train import train_rl

    quieten_libraries()
    yield train_rl(config, curves.write_curves)


def _trained(config: Config, use: str) -> list[str]:
    """The training stages that have finished.

    Args:
        use: what they are for, in words, for the message.

    Raises:
        ArtifactError: none has.
    """
    from minionerec.recommend.variants import STAGES as TRAININGS

    trained = [stage for stage in TRAININGS if (config.folder / stage / MANIFEST).is_file()]
    if not trained:
        raise ArtifactError(f"{config.folder}: has no trained model to {use}. Train one first: minionerec sft")
    return trained


def _has_model(config: Config, stages: Collection[str]) -> bool:
    """Whether a run has a trained model once these stages have run."""
    return any(stage in stages or (config.folder / stage / MANIFEST).is_file() for stage in ("sft", "rl"))


def _mixture(config: Config) -> Iterator[Finished]:
    from minionerec.training.fit_mixture import fit_mixture

    quieten_libraries()
    for stage in _trained(config, "mix anything into"):
        if config.mixture.searches:
            yield fit_mixture(config, stage)
        else:
            yield from _on_main(partial(fit_mixture, config, stage))


def _d3(config: Config) -> Iterator[Finished]:
    from minionerec.training.fit_assistant import TITLES, fit_assistant

    quieten_libraries()
    trained = _trained(config, "help")
    for stage in trained:
        if stage != "sft" or config.sft.writes_sids:
            yield fit_assistant(config, stage)
    if config.eval.title_trie and "sft" in trained:
        yield fit_assistant(config, TITLES)


def _of_models(config: Config) -> list[str]:
    """The settings of an evaluation that ask for further lists of a trained model."""
    asked = [f"eval.{name}" for name in ("assistant", "title_assistant") if getattr(config.eval, name) is not None]
    asked += ["eval.grounding"] if config.eval.grounding != "none" else []
    asked += ["eval.title_trie"] if config.eval.title_trie else []
    asked += ["eval.wordings"] if config.eval.wordings != "first" else []
    return asked + (["mixture.components"] if config.mixture.components else [])


def _eval(config: Config) -> Iterator[Finished]:
    from minionerec.eval.evaluate import evaluable, evaluate
    from minionerec.eval.listed import left_out

    quieten_libraries()
    if not _has_model(config, ()) and (idle := _of_models(config)) and is_main_process():
        log.warning(
            "%s: no trained model here, so %s %s no effect. Train one first: minionerec sft",
            config.folder,
            ", ".join(idle),
            "has" if len(idle) == 1 else "have",
        )
    recommenders = evaluable(config)
    reasons = left_out(config, recommenders)
    for recommender in recommenders:
        if recommender not in reasons:
            yield evaluate(config, recommender)
        elif is_main_process():
            log.warning("%s is not evaluated. %s", recommender, reasons[recommender])


def _report(config: Config) -> Iterator[Finished]:
    from minionerec.report import build

    yield from _on_main(lambda: build.write_report(config))


def _baseline(config: Config) -> Iterator[Finished]:
    from minionerec.baselines.train import train_baseline
    from minionerec.eval.evaluate import evaluate

    manifest, fresh = train_baseline(config)
    evaluable = config.baseline.protocol == "dataset" and config.baseline.model not in PLAIN_FLOORS
    if not evaluable or not (config.folder / "sid" / MANIFEST).is_file():
        yield manifest, fresh
        return
    # The line of the evaluation has the figures of lists; a baseline that writes SIDs has others here, of a search of its own.
    of_training = {name: value for name, value in manifest.metrics.items() if not name.startswith(("test ", "valid "))}
    yield dataclasses.replace(manifest, metrics=of_training), fresh
    yield evaluate(config, config.baseline.model)


def _lego(config: Config) -> Iterator[Finished]:
    from minionerec.legommenders.train import train_lego

    quieten_libraries()
    yield train_lego(config)
    if config.lego.task == "lists":
        from minionerec.eval.evaluate import evaluate

        yield evaluate(config, f"lego-{config.lego.title}")


STAGES: dict[str, Callable[[Config], Iterator[Finished]]] = {
    "data": _data,
    "sid": _sid,
    "sft": _sft,
    "rl": _rl,
    "mixture": _mixture,
    "d3": _d3,
    "eval": _eval,
    "report": _report,
    "baseline": _baseline,
    "lego": _lego,
    "pairs": _pairs,
    "yes-no": _yes_no,
    "score": _score,
}


def _early_sid(config: Config, pending: Sequence[str]) -> None:
    from minionerec.training.early import check_baseline
    from minionerec.training.machine import check_quantizer_memory

    if config.sid.shipped:
        return
    check_quantizer_memory(config.sid)
    if config.sid.collaborative_model is not None:
        check_baseline("sid.collaborative_model", config.sid.collaborative_model, config, pending)
    if config.sid.vectors is not None and not Path(config.sid.vectors).is_file():
        raise ConfigError(f"sid.vectors {config.sid.vectors}: no such file; expected a .npy file of your own vectors.")


def _early_sft(config: Config, pending: Sequence[str]) -> None:
    from minionerec.sft.early import check_early

    check_early(config, pending)


def _early_rl(config: Config, pending: Sequence[str]) -> None:
    from minionerec.rl.early import check_early

    check_early(config, pending)


def _early_mixture(config: Config, pending: Sequence[str]) -> None:
    from minionerec.training.early import check_mixture

    check_mixture(config, pending)


def _early_d3(config: Config, pending: Sequence[str]) -> None:
    from minionerec.training import early

    early.check_assistant(config, pending)
    if "data" not in pending:
        early.check_valid_rows(config, "the weight of an assistant is chosen on it", "set eval.assistant null")
    if config.eval.title_trie:
        _check_titles(config, pending)


def _early_eval(config: Config, pending: Sequence[str]) -> None:
    from minionerec.training import early, machine

    if "rl" in pending and config.rl.prompts == "valid" and config.eval.split == "valid":
        raise ConfigError(
            "eval.split is valid, but rl.prompts valid would train RL's model on these rows. Evaluate it on test (eval.split "
            "test), or train on rl.prompts train or holdout."
        )
    machine.check_search_memory(config, 0 if "data" in pending else early.rows_of(config.folder, "catalog") or 0)
    if _has_model(config, pending):
        early.check_title_assistant(config, pending)
        if config.eval.assistant is not None:
            early.check_assistant(config, pending)
    _check_titles(config, pending)


def _check_titles(config: Config, pending: Sequence[str]) -> None:
    """Refuse titles that the SFT model, if there is or will be one, cannot write or be searched for."""
    if config.eval.grounding == "none" and not config.eval.title_trie:
        return
    if "sft" in pending:
        from minionerec.training.early import check_titles

        check_titles(config, pending)
    elif (config.folder / "sft" / MANIFEST).is_file():
        from minionerec.eval import evaluate  # imports torch

        quieten_libraries()
        evaluate.check_titles(config)


def _early_yes_no(config: Config, pending: Sequence[str]) -> None:
    from minionerec.scoring.early import check_early

    check_early(config, pending)


def _early_score(config: Config, pending: Sequence[str]) -> None:
    from minionerec.scoring.early import check_scoring

    check_scoring(config)


def _early_lego(config: Config, pending: Sequence[str]) -> None:
    from minionerec.legommenders.early import check_early

    check_early(config)


def _early_baseline(config: Config, pending: Sequence[str]) -> None:
    from minionerec.training import early, machine

    machine.check_baseline_memory(config.baseline, early.rows_of(config.folder, "catalog") or 0)
    if config.baseline.sequential is not None and config.baseline.model == "mixture":
        early.check_baseline("baseline.sequential", config.baseline.sequential, config, pending)
    if config.baseline.model in VECTOR_BASELINES:
        early.check_vectors(config, pending)


EARLY_CHECKS = {
    "sid": _early_sid,
    "sft": _early_sft,
    "rl": _early_rl,
    "mixture": _early_mixture,
    "d3": _early_d3,
    "eval": _early_eval,
    "baseline": _early_baseline,
    "lego": _early_lego,
    "yes-no": _early_yes_no,
    "score": _early_score,
}


def _check_ahead(config: Config, stages: tuple[str, ...]) -> None:
    """Refuse now what a stage would refuse after the stages before it have taken their time.

    Args:
        stages: those that are still to run, in order. A finished stage decides itself whether it is current.
    """
    unfinished = [stage for stage in stages if config.replace or not _has_finished(config, stage, stages)]
    for stage in unfinished:
        check_packages(stage)
        if stage in EARLY_CHECKS:
            EARLY_CHECKS[stage](config, stages[: stages.index(stage)])
    if "sft" in unfinished and stages[0] != "sft" and config.model.init == "from_pretrained":
        from minionerec.model import checkpoint  # imports torch

        quieten_libraries()
        checkpoint.load(str(config.model.path), weights=False)
    if "rl" in unfinished and stages[0] == "sft":  # which imports torch anyway
        from minionerec.rl.arguments import split_prompts

        split_prompts(config.rl)


def _has_finished(config: Config, stage: str, stages: tuple[str, ...]) -> bool:
    """Whether a stage has left all its artefacts, as far as its folders tell; evaluations and baselines are never asked."""
    if stage == "yes-no":
        return (config.folder / stage / config.yes_no.name / MANIFEST).is_file()
    if stage not in ("mixture", "d3"):
        return (config.folder / stage / MANIFEST).is_file()
    trained = [name for name in ("sft", "rl") if name in stages or (config.folder / name / MANIFEST).is_file()]
    folders = [folder for name in trained for folder in (name, f"{stage}/{name}")]
    return bool(folders) and all((config.folder / folder / MANIFEST).is_file() for folder in folders)


def _on_main(stage: Callable[[], Finished]) -> list[Finished]:
    """Run a single-process stage on the main process while all other processes wait for it."""
    finished = [stage()] if is_main_process() else []
    wait_for_everyone()
    return finished


def _on_main_each(stage: Callable[[], Iterator[Finished]]) -> Iterator[Finished]:
    """Run a single-process stage of several artefacts on the main process; each is given as soon as it is made."""
    if is_main_process():
        yield from stage()
    wait_for_everyone()


def set_up(threads: int) -> None:
    """Cap the threads of the numerical libraries, before the first of them is imported, and switch off their chatter.

    More than two threads per core wait for one another: with 128 threads on two cores a training of 30 seconds never ends. An
    OMP_NUM_THREADS in the environment is the number for all libraries: torch computes with MKL_NUM_THREADS if that is another.
    """
    if threads > 2 * (cores := available_cores()):
        log.warning("threads %d is lowered to %d, the cores of this machine: more would wait for one another.", threads, cores)
        threads = cores
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdecimal():
        threads = int(chosen)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|torch\.distributed")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        _deepspeed_without_compiler()


def _deepspeed_without_compiler() -> None:
    """On CPUs, keep DeepSpeed from compiling a shared-memory kernel for two minutes; gloo serves as well."""
    import torch

    if not torch.cuda.is_available():
        expect_no_gpu()
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def use_cache_without_hub(config: Config) -> None:
    """Read models from the local cache alone if the configuration names a model of the hub and the hub does not answer.

    Without this huggingface_hub asks for every file again and again: almost a minute until the first error.
    """
    from minionerec.model import pretrained

    words = config.lego.plm.path if config.lego.parts.item == "plm" else None
    asked = (config.model.path, config.score.model, config.score.encoder, config.sid.encoder, words)
    names = [name for name in asked if name and name not in ("minilm", "tfidf") and not pretrained.is_published(name)]
    if "HF_HUB_OFFLINE" in os.environ or all(Path(name).exists() for name in names):
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that start later, and if the library is not imported yet
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True


def refuse_absent_model(config: Config) -> None:
    """Stop before any stage runs, and before torch is imported, if the base model is neither in a folder nor to be had.

    Raises:
        ConfigError: the hub cannot be asked, and the cache does not hold the model; or it is a published model that is not in
            the package's cache.
    """
    path = config.model.path
    if config.model.init == "from_scratch" or path is None or Path(path).exists():
        return
    from minionerec.model import pretrained

    if pretrained.is_published(path):
        pretrained.check_present(path)
        return
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE:
        return
    try:
        cached = isinstance(try_to_load_from_cache(path, "config.json"), str)
    except ValueError:  # the path of a folder that is not there is no name of the hub
        cached = False
    if not cached:
        raise ConfigError(
            f"model.path {path}: there is no such folder, the hub cannot be reached, and its cache does not hold this model. "
            "Expected a folder with config.json, model.safetensors and tokenizer files, a GGUF file, or a hub name that can be "
            f"reached.{did_you_mean(path, pretrained.PUBLISHED)}"
        )


def run(config: Config, stages: tuple[str, ...], checks: Mapping[str, Callable[[], None]] | None = None) -> None:
    """Run the named stages and print one line for each artefact: its figures, where it lies, how long it took.

    Before an evaluation the weights of the mixture are fitted, if one is asked for (`mixture.components`), and the weight of a
    model next to its assistant is chosen (`eval.assistant`). After several stages a line says how long all took, and the most
    memory that was held.

    Args:
        checks: by stage, what may refuse the command as soon as the stages before this one have run.
    """
    trains = _has_model(config, stages)
    wanted = {"mixture": config.mixture.components, "d3": config.eval.assistant and config.eval.assistant_weight is None}
    for stage in (name for name, asked in wanted.items() if asked and name not in stages and "eval" in stages and trains):
        place = stages.index("eval")
        stages = (*stages[:place], stage, *stages[place:])
    set_up(config.threads)
    use_cache_without_hub(config)
    if config.engine == "ray":
        check_engine()
    if "sft" in stages and not (config.folder / "sft" / MANIFEST).is_file():  # a finished one needs its base model no more
        refuse_absent_model(config)
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # under accelerate launch
        from minionerec.training.launch import start_all_processes

        start_all_processes()
    began = time.monotonic()
    if (line := other_work(config.threads)) is not None and is_main_process():
        print(line, flush=True)
    console = Console(emoji=False, quiet=not is_main_process(), highlight=False, soft_wrap=True)
    if (line := run_file.other_settings(config, stages)) is not None:
        Console(emoji=False, stderr=True, quiet=console.quiet, highlight=False, soft_wrap=True).print(line, markup=False)
    for number, stage in enumerate(stages):
        _check_ahead(config, stages[number:])
        if checks is not None and stage in checks:
            checks[stage]()
        started = time.monotonic()
        with run_file.recording(config, stage), use_engine(Engine(config.engine, config.engine_workers)):
            for manifest, fresh in STAGES[stage](config):
                took = f"{time.monotonic() - started:.1f} s" if fresh else "up to date"
                folder = escape(str(config.folder / manifest.stage))
                console.print(f"[bold]{manifest.stage}[/] {folder}: {summary(manifest)} [dim]({took})[/]")
                started = time.monotonic()
    if len(stages) > 1:
        console.print(f"[bold]all[/] {(time.monotonic() - began) / 60:.1f} min{_peak_memory()}")


def plan(
    stage: str, config: Config, devices: int | None, gpu_memory: float | None, machines: int = 1, gbit: float | None = None
) -> None:
    """Print what a training stage would take, without training.

    Args:
        devices: plan for this many on each machine; None for the devices of this machine.
        gpu_memory: of each, to say whether it fits (GB).
        machines: plan for this many.
        gbit: speed of each machine's link (Gbit/s), to say how long it is busy in a step.

    Raises:
        ArtifactError: data or SIDs are missing, or the baseline that validations mix in cannot be asked.
        ConfigError: the training cannot be planned with these settings.
    """
    set_up(config.threads)
    from minionerec.sft.early import check_trained_mixture
    from minionerec.training.early import check_component_baseline

    if stage == "sft":
        check_trained_mixture(config)
    if config.mixes_in(stage):
        check_component_baseline(config)
    use_cache_without_hub(config)
    if stage == "sft" or not (config.folder / "sft" / "model").is_dir():
        refuse_absent_model(config)
    quieten_libraries()
    from minionerec.rl import plan as rl_plan
    from minionerec.sft import plan as sft_plan
    from minionerec.training import network

    total = devices if devices is None else devices * machines
    for planned in {"sft": sft_plan, "rl": rl_plan}[stage].plans(config, total):
        planned.show(gpu_memory, network.rows(planned, machines, gbit) if machines > 1 else ())


def _peak_memory() -> str:
    """The most memory this process has held, as text; empty on Windows, where Python cannot tell."""
    if sys.platform == "win32":
        return ""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f", peak memory {peak / 1e9 if sys.platform == 'darwin' else peak * 1024 / 1e9:.2f} GB"  # macOS: bytes, Linux: KiB


def summary(manifest: Manifest) -> str:
    """The first few figures of a manifest, as one line."""
    figures = [(name, value) for name, value in manifest.metrics.items() if isinstance(value, int | float)][:6]
    return ", ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}" for name, value in figures)
