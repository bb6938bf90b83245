"""One GRPO optimiser step, rollouts included: ours (`TreeGRPOTrainer`, ranked beams) against stock TRL with `generate`.

Claim: with 16 generations and prompts of 200 tokens a whole step (rollout, log-probabilities of policy and reference, backward,
optimiser) of a 4-layer, 256-wide model is at least 10 times faster. The peer is TRL's own `GRPOTrainer` with the same
arguments, whose rollouts come from transformers' beam search with 16 beams and a vectorised trie processor, one call for all
prompts of the step. The policy differs from the reference, so that the KL is not 0, and the reward tells SIDs apart.

Both sides start from the same weights. The first step is not timed but compared: the run stops unless rollouts are equal and
loss, gradient norm, gradients and the parameters after the step agree. The next ones are timed from TRL's `on_step_begin` to
`on_step_end`. Every figure is the median over fresh processes, ours and the peer in turn.

On a GPU (`--device cuda --bf16 --model 0.5b --per-step 16 --micro-prompts 16 --peer-micro-prompts 4`) the model has random
weights of that shape, and both sides compute in bf16, as `rl.bf16` does: rollouts then differ in near ties, so the run says how
many SIDs agree instead of stopping.

    python benchmarks/grpo_step.py                                                            # Industrial trie
    python benchmarks/grpo_step.py --model tiny --prompts 12 --generations 4 --steps 1        # seconds
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from setting import (
    SIZES,
    Measured,
    TrieTable,
    alternate,
    check_places,
    codes_of_run,
    generate_beams,
    industrial_codes,
    kernels_of,
    machine,
    parser,
    peak_memory,
    positive,
    profiler,
    random_model,
    report,
    table,
    write_json,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation
from turns import turn

from minionerec.config import RlConfig
from minionerec.rl.rollouts import Rollouts
from minionerec.rl.trainer import TreeGRPOTrainer
from minionerec.tree import CatalogTrie

SIDES = ("ours", "peer")
MOST_VALUES = 1_000_000  # of a tensor, that are compared
# The loss is little but its KL part, whose terms are squares of small differences of log-probabilities: rounding weighs more.
AGREE = {"loss": 1e-3, "gradient norm": 1e-4, "gradients": 1e-4, "update": 2e-2}  # see `differences`


def generate_rollouts(trie: CatalogTrie, num_generations: int) -> Callable[[list, GRPOTrainer], dict[str, Any]]:
    """The peer's `rollout_func`: the same beams by transformers."""

    def rollout(prompts: list[list[int]], trainer: GRPOTrainer) -> dict[str, Any]:
        ids = torch.tensor(prompts[::num_generations], device=trie.device)
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model, torch.no_grad():
            model.eval()
            sids, _ = generate_beams(model, ids, TrieTable(trie, ids.shape[1]), num_generations, trie.depth)
            model.train()
        return {"prompt_ids": prompts, "completion_ids": sids.flatten(0, 1).tolist(), "logprobs": None}

    return rollout


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Any reward that tells SIDs apart."""
    return [sum(sid) % 97 / 97 for sid in completion_ids]


class Watch(TrainerCallback):
    """Seconds of each step; gradients, parameters and rollouts of the first; kernels of the last, if asked for."""

    def __init__(self, profiled: int | None = None) -> None:
        """`profiled` is the number of the step whose kernels are counted, from 0; it is not timed."""
        self.profiled = profiled
        self.profile: torch.profiler.profile | None = None
        self.kernels: dict[str, Any] = {}
        self.times: list[float] = []
        self.tensors: dict[str, torch.Tensor] = {}
        self.loaded = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.loaded = self.loaded or peak_memory()
        wait()
        if state.global_step == self.profiled:
            self.profile = profiler()
            self.profile.__enter__()
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        """Keep the first gradients, clipped, and the parameters before the step."""
        if state.global_step == 0:
            self.tensors["before"] = some(parameter.detach() for parameter in model.parameters())
            self.tensors["gradients"] = some(parameter.grad for parameter in model.parameters())

    def on_step_end(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        """Stop the clock; keep the parameters after the first step."""
        wait()
        if self.profile is not None:
            self.profile.__exit__(None, None, None)
            self.kernels = kernels_of(self.profile)
            return
        self.times.append(time.perf_counter() - self.started)
        if state.global_step == 1:
            self.tensors["after"] = some(parameter.detach() for parameter in model.parameters())


def wait() -> None:
    """Until a GPU has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def some(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The values of small tensors, and a sample of those of large ones: they go through a file."""
    return torch.cat([tensor.flatten()[:: max(1, tensor.numel() // MOST_VALUES)].cpu() for tensor in tensors])


def policy_folder(folder: Path, size: str, sid_tokens: int, device: str) -> PreTrainedTokenizerFast:
    """A checkpoint that TRL can load its reference model from, with a tokenizer of one word per token id."""
    words = {f"t{token}": token for token in range(SIZES[size]["vocabulary"] + sid_tokens)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="t0")), eos_token="t1", pad_token="t0", unk_token="t0"
    )
    random_model(size, sid_tokens, device=device).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def measure(side: str, options: argparse.Namespace) -> Measured:
    """Train one step for comparison and `steps` for the time.

    Returns:
        seconds of a step, peak memory, loss, gradient norm and KL of the first step; its tensors.
    """
    model, prompt, prompts, steps = options.model, options.prompts[0], options.per_step, options.steps
    generations, device = options.generations, options.device
    codes, _ = codes_of_run(options.run) if options.run else industrial_codes()
    trie = CatalogTrie.from_codes(codes + SIZES[model]["vocabulary"] * (codes >= 0), device)
    micro = (options.micro_prompts if side == "ours" else options.peer_micro_prompts or options.micro_prompts) or prompts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = policy_folder(folder, model, int(codes.max()) + 1, device)
        policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(device)
        generator = torch.Generator(device).manual_seed(2)
        with torch.no_grad():
            for parameter in policy.parameters():  # the reference model stays what the folder holds
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator, device=device)
        size = (prompts * (steps + 1 + options.profile), prompt)
        ids = torch.randint(2, SIZES[model]["vocabulary"], size, generator=generator, device=device)
        arguments = GRPOConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=micro * generations,
            gradient_accumulation_steps=prompts // micro,
            steps_per_generation=prompts // micro,
            num_generations=generations,
            max_completion_length=trie.levels,
            max_steps=steps + 1 + options.profile,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            beta=0.04,
            loss_type="grpo",
            use_bias_correction_kl=False,
            logging_steps=1,
            save_strategy="no",
            bf16=options.bf16,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            use_cpu=device == "cpu",
            disable_tqdm=True,
            report_to="none",
            seed=0,
        )
        leaves = torch.arange(len(ids)) % len(trie)  # ours logs hits; the reward does not look at the target
        rows = {"prompt": ids.tolist(), "target": trie.sid(leaves.to(device)).tolist()}
        watch = Watch(steps + 1 if options.profile else None)
        ours = side == "ours"
        trainer = (TreeGRPOTrainer if ours else GRPOTrainer)(
            model=policy,
            args=arguments,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
            reward_funcs=keep_first(watch, reward),
            rollout_func=Rollouts(trie, RlConfig(num_generations=generations, bf16=options.bf16), 0, 0)
            if ours
            else generate_rollouts(trie, generations),
            callbacks=[watch],
            **({"trie": trie} if ours else {}),
        )
        with turn():
            trainer.train()
    first = trainer.state.log_history[0]
    figures = {"seconds": median(watch.times[1:]), "peak": peak_memory(), "loaded": watch.loaded}
    figures |= {f"kernels {name}": value for name, value in watch.kernels.items() if name != "longest"}
    figures |= {"loss": first["loss"], "gradient norm": first["grad_norm"], "kl": first["kl"]}
    return figures, watch.tensors


def keep_first(watch: Watch, function: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """The reward, noting the first step's rollouts."""

    def noting(completion_ids: list[list[int]], **others: Any) -> list[float]:
        watch.tensors.setdefault("sids", torch.tensor(completion_ids))
        return function(completion_ids, **others)

    return noting


def differences(ours: Measured, peer: Measured) -> dict[str, float]:
    """How far the first step is apart: the loss relative to its KL part, the others relative to the peer's norm.

    The update is Adam's first: every parameter moves by about the learning rate in its gradient's direction, so that rounding
    noise moves those whose gradient is next to 0.

    Raises:
        SystemExit: the rollouts differ, or a difference is larger than `AGREE`.
    """
    (figures, tensors), (their_figures, their_tensors) = ours, peer
    if not torch.equal(tensors["sids"], their_tensors["sids"]):
        raise SystemExit("The rollouts differ.")
    update, their_update = (side["after"] - side["before"] for side in (tensors, their_tensors))
    found = {
        "loss": abs(figures["loss"] - their_figures["loss"]) / abs(0.04 * their_figures["kl"]),
        "gradient norm": abs(figures["gradient norm"] / their_figures["gradient norm"] - 1),
        "gradients": float((tensors["gradients"] - their_tensors["gradients"]).norm() / their_tensors["gradients"].norm()),
        "update": float((update - their_update).norm() / their_update.norm()),
    }
    if any(value > AGREE[name] for name, value in found.items()):
        raise SystemExit(f"The steps differ: {found}.")
    return found


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, SIDES)
    options.add_argument("--model", choices=SIZES, default="small")
    options.add_argument("--prompts", type=positive, nargs="+", default=[64, 200, 512], help="their length (tokens)")
    options.add_argument("--per-step", type=positive, default=4, help="prompts per optimiser step")
    options.add_argument("--micro-prompts", type=positive, help="prompts per backward pass (default: all of a step)")
    options.add_argument("--peer-micro-prompts", type=positive, help="of the peer, whose rows take more memory (the same)")
    options.add_argument("--generations", type=positive, default=16)
    options.add_argument("--steps", type=positive, default=3, help="timed steps in a process")
    options.add_argument("--run", type=Path, help="a run whose SIDs are the catalog (default: shared data, else random SIDs)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--bf16", action="store_true", help="compute in bfloat16 (autocast)")
    options.add_argument("--profile", action="store_true", help="count the kernels of one more step")
    options.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = options.parse_args(argv)
    check_places(options, arguments)
    for name in ("micro_prompts", "peer_micro_prompts"):  # a rest would be left out of the step
        if (micro := getattr(arguments, name)) and arguments.per_step % micro:
            options.error(f"argument --{name.replace('_', '-')}: {micro} does not divide --per-step {arguments.per_step}")
    if arguments.only:
        return report(arguments, measure(arguments.only, arguments))
    source = codes_of_run(arguments.run)[1] if arguments.run else industrial_codes()[1]
    print(f"{machine()}; {source}; model {arguments.model}, {arguments.per_step} prompts per step", flush=True)
    flags = [f"--{name}" for name in ("bf16", "profile") if getattr(arguments, name)]
    for name in ("model", "per-step", "micro-prompts", "peer-micro-prompts", "generations", "steps", "run", "device"):
        value = getattr(arguments, name.replace("-", "_"))
        flags += [f"--{name}", str(value)] if value else []
    rows, kept = [], []
    for prompt in arguments.prompts:
        ended: dict[str, Any] = {"prompt": prompt}

        def keep(side: str, figures: dict[str, Any], ended: dict[str, Any] = ended) -> None:
            """Print and write a side's figures before the other one ends."""
            ended[side] = figures
            print(f"prompt {ended['prompt']}, {side}: {figures['seconds']:.3g} s, {figures['peak']:.2f} GB", flush=True)
            write_json(arguments.out, {"prompts": [*kept, ended]})

        found = alternate(
            __file__, SIDES, [*flags, "--prompts", str(prompt)], arguments.repeats, arguments.device == "cuda", keep
        )
        ours, peer = found["ours"][0], found["peer"][0]
        if arguments.bf16:
            groups = [side[1]["sids"].view(-1, arguments.generations, side[1]["sids"].shape[-1]) for side in found.values()]
            same = (groups[0][:, :, None] == groups[1][:, None]).all(-1).any(-1).double().mean()
            apart = f"{same:.1%} of the rollouts agree"
        else:
            apart = "relative differences: " + ", ".join(
                f"{name} {value:.1e}" for name, value in differences(found["ours"], found["peer"]).items()
            )
        print(f"prompt {prompt}: loss {ours['loss']:.6g} and {peer['loss']:.6g}, gradient norm {ours['gradient norm']:.6g} and "
              f"{peer['gradient norm']:.6g}, KL {ours['kl']:.4g}; {apart}", flush=True)  # fmt: skip
        for name, side in (("ours", ours), ("stock TRL", peer)) if arguments.profile else ():
            print(f"{name}: {side['kernels calls']:,.0f} kernels in a step, {side['kernels ms']:.0f} ms of them", flush=True)
        memory = [f"{side['peak']:.2f} ({side['loaded']:.2f})" for side in (ours, peer)]
        rows.append([prompt, ours["seconds"], peer["seconds"], peer["seconds"] / ours["seconds"], *memory])
        kept.append({"prompt": prompt, "ours": ours, "peer": peer, "apart": apart})
        write_json(arguments.out, {"prompts": kept})
    table(["prompt", "ours s", "stock TRL s", "times faster", "ours peak GB (before)", "TRL peak GB (before)"], rows)


if __name__ == "__main__":
    main()
