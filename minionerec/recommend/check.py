"""Check that an engine recommends from this folder as MiniOneRec did when it exported it.

    python check.py --engine hf                                  # transformers, on this machine
    python check.py --engine vllm                                # or sglang, flashrec: offline, on this machine's GPU
    python check.py --engine server --url http://127.0.0.1:8000  # a running `minionerec serve`

The folder's `golden.jsonl` has prompts with the lists that MiniOneRec made of them. The engine answers the same prompts, and
the answers are compared: which SIDs, in which order, with which scores. The exit status is 0 if all thresholds are met, 1 if
not, and 2 if the engine cannot be checked.

This file needs no MiniOneRec: only Python, numpy, safetensors and the engine.
"""

import argparse
import bisect
import itertools
import json
import math
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NO_TOKEN = -1  # in the trie: fills up a short SID, with log-probability 0
_IMPOSSIBLE = -1e8  # transformers starts all beams but the first at -1e9; what grows from these is no result

Beam = tuple[tuple[int, ...], float]  # a SID's token ids and its score: the sum of log-probabilities, in nats


class Trie:
    """The valid SIDs: `trie.safetensors`.

    Nodes of a level are numbered so that the children of a node are consecutive and their tokens ascend.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        self.depth = sum(name.startswith("tokens_") for name in arrays)
        self.tokens = [arrays[f"tokens_{level}"] for level in range(self.depth)]
        self.offsets = [arrays[f"offsets_{level}"] for level in range(self.depth)]
        used = {int(token) for level in range(self.depth) for token in arrays[f"alphabet_{level}"]}
        self.filler = next(token for token in range(len(used) + 1) if token not in used)
        """A token of no SID; transformers writes it behind a short SID."""
        self.ragged = any((level == NO_TOKEN).any() for level in self.tokens)

    def following(self, tokens: Sequence[int]) -> list[int] | None:
        """The tokens that may follow a prefix: none after a whole SID; None if no SID begins like this."""
        node = 0
        for level, token in enumerate([*tokens, None]):
            if level == self.depth:
                return [] if token is None else None
            low, high = int(self.offsets[level][node]), int(self.offsets[level][node + 1])
            if token is None:
                return [int(child) for child in self.tokens[level][low:high]]
            node = bisect.bisect_left(self.tokens[level], token, low, high)
            if node == high or self.tokens[level][node] != token:
                return None
        raise AssertionError("unreachable: the last token is None")

    def has(self, sid: Sequence[int]) -> bool:
        """Whether this is a whole SID, without the `NO_TOKEN` that fill it up."""
        return self.following([*sid, *[NO_TOKEN] * (self.depth - len(sid))]) == []


@dataclass
class Golden:
    """A prompt and the list that MiniOneRec made of it.

    Attributes:
        history: item ids, oldest first.
        prompt: token ids.
        exact: proven: no SID outside the list scores higher than one in it.
        sids, scores: best first.
        levels: per SID, the log-probability of each of its tokens.
    """

    history: list[str]
    prompt: list[int]
    exact: bool
    sids: list[list[int]]
    scores: list[float]
    levels: list[list[float]] = field(repr=False)

    @property
    def score_of(self) -> dict[tuple[int, ...], float]:
        """The score of each SID of the list."""
        return {tuple(sid): score for sid, score in zip(self.sids, self.scores, strict=True)}


class Bundle:
    """The exported folder."""

    def __init__(self, folder: str | Path, prompts: int | None = None) -> None:
        self.folder = Path(folder)
        self.serving: dict[str, Any] = json.loads((self.folder / "serving.json").read_text(encoding="utf-8"))
        lines = (self.folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()
        self.golden = [Golden(**json.loads(line)) for line in lines[:prompts]]
        self.trie = Trie(self.folder / "trie.safetensors")


# Engines. Each returns a list of beams for every golden prompt, best first.


def legal_tokens(trie: Trie, prompt_tokens: int) -> Callable[[int, Any], list[int]]:
    """`prefix_allowed_tokens_fn` of transformers' `generate`: only SIDs of the catalog can be written behind the prompt.

    Args:
        prompt_tokens: length of the prompt.
    """

    def allowed(batch: int, ids: Any) -> list[int]:
        del batch
        written = [NO_TOKEN if token == trie.filler else token for token in ids[prompt_tokens:].tolist()]
        following = trie.following(written) or [NO_TOKEN]  # a beam without a legal token has the score -inf already
        return [trie.filler if token == NO_TOKEN else token for token in following]

    return allowed


def transformers_beams(model: Any, bundle: Bundle, prompt: Sequence[int], num_beams: int) -> list[Beam]:
    """The list of one prompt by transformers' own beam search, constrained to the catalog."""
    import torch
    from transformers import GenerationConfig, LogitsProcessor

    trie = bundle.trie

    class EndedSids(LogitsProcessor):
        """Behind the end of a short SID nothing needs predicting: the filler has log-probability 0 wherever it is legal."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            column = scores[:, trie.filler]
            scores[:, trie.filler] = torch.where(column > -torch.inf, 0.0, column)
            return scores

    # The model's own generation settings (sampling, penalties, an end token) would change the lists.
    model.generation_config = GenerationConfig(pad_token_id=trie.filler)
    ids = torch.tensor([list(prompt)], device=model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=0.0,
        max_new_tokens=trie.depth,
        prefix_allowed_tokens_fn=legal_tokens(trie, len(prompt)),
        logits_processor=[EndedSids()] if trie.ragged else [],
        renormalize_logits=bundle.serving["normalise_over"] == "catalog",
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = zip(output.sequences[:, len(prompt) :].tolist(), output.sequences_scores.tolist(), strict=True)
    return [(tuple(token for token in sid if token != trie.filler), score) for sid, score in rows if score > _IMPOSSIBLE]


def _hf(bundle: Bundle, options: argparse.Namespace) -> list[list[Beam]]:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(bundle.folder, dtype=getattr(torch, options.dtype))
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return [transformers_beams(model, bundle, golden.prompt, len(golden.sids)) for golden in bundle.golden]


def _vllm(bundle: Bundle, options: argparse.Namespace) -> list[list[Beam]]:
    """Ask vLLM. It switches constraints off in its beam search, so it searches wider and what is no SID is filtered out."""
    from vllm import LLM
    from vllm.sampling_params import BeamSearchParams

    engine = LLM(model=str(bundle.folder), dtype=options.dtype, max_logprobs=2 * options.beams)
    parameters = BeamSearchParams(beam_width=options.beams, max_tokens=bundle.trie.depth, ignore_eos=True)
    outputs = engine.beam_search([{"prompt_token_ids": golden.prompt} for golden in bundle.golden], parameters)
    return [
        [(tuple(beam.tokens[len(golden.prompt) :]), beam.cum_logprob) for beam in output.sequences]
        for golden, output in zip(bundle.golden, outputs, strict=True)
    ]


def _sglang(bundle: Bundle, options: argparse.Namespace) -> list[list[Beam]]:
    """Ask SGLang. It refuses constraints in its beam search, so it searches wider and what is no SID is filtered out."""
    import sglang

    engine = sglang.Engine(model_path=str(bundle.folder), dtype=options.dtype, page_size=1)
    sampling = {
        "beam_width": options.beams,
        "n": options.beams,
        "max_new_tokens": bundle.trie.depth,
        "temperature": 0.0,
        "ignore_eos": True,
    }
    try:
        outputs = engine.generate(input_ids=[golden.prompt for golden in bundle.golden], sampling_params=sampling)
    finally:
        engine.shutdown()
    # SGLang divides a sum of log-probabilities by the number of its tokens.
    return [
        [
            (tuple(beam["output_ids"]), beam["meta_info"]["sequence_score"] * len(beam["output_ids"]))
            for beam in output["meta_info"]["beam_results"]
        ]
        for output in outputs
    ]


def _flashrec(bundle: Bundle, options: argparse.Namespace) -> list[list[Beam]]:
    """Ask FlashRec, which searches only the catalog, as we do; directly, because its service adds a chat template."""
    if "flashrec" not in bundle.serving:
        raise CannotCheckError("the folder was exported for another engine. Export it again with --for flashrec.")
    from flashrec import BeamRecConfig, BeamRecEngine

    layout = bundle.serving["flashrec"]
    config = BeamRecConfig(
        model_path=str(bundle.folder),
        sid_vocab_file=str(bundle.folder / "flashrec.json"),
        sid_token_range=layout["token_range"],
        sid_codebook_sizes=layout["codebook_sizes"],
        sid_boundary_tokens=layout["boundary_tokens"],
        quantization="bf16",  # anything but fp8, its default, computes in `compute_dtype`
        compute_dtype=options.dtype,
        beam_width=options.beams,
        max_tokens=bundle.trie.depth,
        length_penalty=0.0,  # a score is then the sum, not the mean
    )
    engine = BeamRecEngine(config)
    requests = [engine.make_request(input_ids=golden.prompt, n=options.beams) for golden in bundle.golden]
    # Sequences come between the begin and the end token.
    return [
        [(tuple(beam.tokens[1:-1]), beam.cum_logprob) for beam in result.sequences] for result in engine.generate_many(requests)
    ]


def _server(bundle: Bundle, options: argparse.Namespace) -> list[list[Beam]]:
    """Ask `minionerec serve` with item ids. Items that share a SID are one beam."""
    sids = json.loads((bundle.folder / "sids.json").read_text(encoding="utf-8"))
    items_of: dict[tuple[int, ...], int] = {}
    tokens_of = {}
    for strings in sids["items"].values():
        tokens = tuple(sids["tokens"][string] for string in strings)
        tokens_of["".join(strings)] = tokens
        items_of[tokens] = items_of.get(tokens, 0) + 1
    answers = []
    for golden in bundle.golden:
        beams = len(golden.sids)
        # The list has as many items as beams; these cover fewer SIDs if some SIDs have several items.
        covered = list(itertools.accumulate(items_of[tuple(sid)] for sid in golden.sids))
        golden.sids = golden.sids[: bisect.bisect_left(covered, beams) + 1]
        golden.scores = golden.scores[: len(golden.sids)]
        request = {"history": golden.history, "k": beams, "num_beams": beams, "filters": {"exclude_history": False}}
        answer = _post(f"{options.url.rstrip('/')}/v1/recommend", {"requests": [request]})["results"][0]
        if "error" in answer:
            raise CannotCheckError(f"{options.url}: refused a golden history: {answer['error']}")
        scores = {item["sid"]: item["score"] for item in answer["items"]}
        answers.append([(tokens_of.get(sid, ()), score) for sid, score in scores.items()])
    return answers


def _post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise CannotCheckError(f"{url}: status {error.code}: {error.read()[:300].decode(errors='replace')}") from None
    except (OSError, ValueError) as error:
        raise CannotCheckError(f"{url}: no answer ({error}). Is the service running?") from None


class CannotCheckError(Exception):
    """The engine cannot be checked: it is missing, it does not answer, or it cannot serve this model."""


@dataclass(frozen=True)
class Thresholds:
    """What an engine must reach.

    Attributes:
        overlap: mean share of a golden list that the engine has too, its last places aside that are tied with what it has
            instead.
        top1: share of prompts whose best SID is the golden one or tied with it.
        difference: greatest difference of a score (nats). Scores that differ by less are a tie, whose order is free.
        illegal: share of beams that are no SID, or a SID for the second time.
    """

    overlap: float = 1.0
    top1: float = 1.0
    difference: float = 1e-4
    illegal: float = 0.0


@dataclass(frozen=True)
class Engine:
    """How an engine is asked, in which numbers it computes, and what it must reach."""

    beams: Callable[[Bundle, argparse.Namespace], list[list[Beam]]]
    thresholds: Thresholds
    dtype: str = "float32"


# Without constraints most beams may be spent on what is no SID, which costs places of the list: their share is printed, not
# judged. Kernels for GPUs add in another order, in float32 with errors of some 1e-3 a score.
_UNCONSTRAINED = Thresholds(overlap=0.9, top1=0.98, difference=0.02, illegal=1.0)
ENGINES = {
    "hf": Engine(_hf, Thresholds()),
    "server": Engine(_server, Thresholds()),
    "vllm": Engine(_vllm, _UNCONSTRAINED),
    "sglang": Engine(_sglang, _UNCONSTRAINED),
    # bfloat16 has 8 bits: a log-probability of -8 is off by up to 0.03, and a SID has several.
    "flashrec": Engine(_flashrec, Thresholds(overlap=0.85, top1=0.95, difference=0.25), "bfloat16"),
}


@dataclass
class Result:
    """Figures of a comparison; `misordered` must be 0, the other figures have thresholds.

    Attributes:
        misordered: SIDs that stand behind one whose golden score is lower, and not by a tie.
        overlap_at_10: mean share of the first 10 places, ties not considered; for display.
        difference: greatest difference of a score; a SID outside a golden list that is proven exact counts by how much it
            exceeds the list's last score.
    """

    prompts: int
    overlap: float
    overlap_at_10: float
    top1: float
    difference: float
    misordered: int
    illegal: float

    def failures(self, thresholds: Thresholds) -> list[str]:
        """What misses its threshold."""
        checks = {
            f"overlap {self.overlap:.4f} is below {thresholds.overlap}": self.overlap < thresholds.overlap,
            f"top-1 {self.top1:.4f} is below {thresholds.top1}": self.top1 < thresholds.top1,
            f"a score differs by {self.difference:.3g}, more than {thresholds.difference}": not (
                self.difference <= thresholds.difference
            ),
            f"{self.misordered} SIDs are out of order": self.misordered > 0,
            f"{self.illegal:.1%} of the beams are illegal, more than {thresholds.illegal:.1%}": self.illegal
            > thresholds.illegal,
        }
        return [text for text, failed in checks.items() if failed]


@dataclass
class _Prompt:
    """The comparison of one prompt; see `Result`."""

    overlap: float
    overlap_at_10: float
    top1: bool
    difference: float
    misordered: int
    illegal: int


def compare(bundle: Bundle, answers: Sequence[Sequence[Beam]], thresholds: Thresholds) -> Result:
    """Compare an engine's beams with the golden lists.

    Raises:
        CannotCheckError: there is not one answer per golden prompt.
    """
    if len(answers) != len(bundle.golden):
        raise CannotCheckError(f"the engine gave {len(answers)} answers to {len(bundle.golden)} golden prompts.")
    each = [
        _compare_prompt(golden, beams, bundle.trie, thresholds.difference)
        for golden, beams in zip(bundle.golden, answers, strict=True)
    ]
    count = len(each)
    return Result(
        prompts=count,
        overlap=sum(prompt.overlap for prompt in each) / count,
        overlap_at_10=sum(prompt.overlap_at_10 for prompt in each) / count,
        top1=sum(prompt.top1 for prompt in each) / count,
        difference=max(prompt.difference for prompt in each),
        misordered=sum(prompt.misordered for prompt in each),
        illegal=sum(prompt.illegal for prompt in each) / max(1, sum(map(len, answers))),
    )


def _compare_prompt(golden: Golden, beams: Sequence[Beam], trie: Trie, tie: float) -> _Prompt:
    # 1. Drop what is no SID and what comes a second time; of a wider search only the list's length counts.
    legal: dict[tuple[int, ...], float] = {}
    for sid, score in beams:
        if sid not in legal and trie.has(sid):
            legal[sid] = score
    listed, expected = list(legal)[: len(golden.sids)], golden.score_of
    last = golden.scores[-1]

    # 2. A golden SID may be missing if it is tied with the list's end and another one, tied with it too, stands in its place.
    shared = [sid for sid in listed if sid in expected]
    others = [sid for sid in listed if sid not in expected]
    missing = [sid for sid, score in expected.items() if sid not in legal or sid not in listed]
    tied = min(sum(expected[sid] - last <= tie for sid in missing), sum(legal[sid] >= last - tie for sid in others))

    # 3. Scores: of all golden SIDs that the engine found. If nothing outside the list can exceed its last score, nothing may.
    differences = [abs(score - expected[sid]) for sid, score in legal.items() if sid in expected]
    if golden.exact:
        differences += [legal[sid] - last for sid in others]
    difference = max((math.inf if math.isnan(value) else value for value in differences), default=math.inf)

    # 4. Order: behind a SID none may stand whose golden score is higher, unless they are tied.
    misordered, lowest = 0, math.inf
    for sid in shared:
        misordered += expected[sid] > lowest + tie
        lowest = min(lowest, expected[sid])
    best = golden.scores[0]
    top1 = bool(listed) and (expected[listed[0]] if listed[0] in expected else legal[listed[0]]) >= best - tie
    first = [tuple(sid) for sid in golden.sids[:10]]
    return _Prompt(
        overlap=(len(shared) + tied) / len(golden.sids),
        overlap_at_10=len(set(first) & set(listed[:10])) / len(first),
        top1=top1,
        difference=difference,
        misordered=misordered,
        illegal=len(beams) - len(legal),
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="the exported folder (default: this file's)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--prompts", type=int, help="compare only the first so many golden prompts")
    parser.add_argument("--beams", type=int, help="beams of the engine (default: vllm and sglang twice the golden list's)")
    parser.add_argument("--dtype", help="numbers the engine computes in (default: float32; flashrec: bfloat16)")
    for name, text in (
        ("overlap", "least mean overlap of a list"),
        ("top1", "least share of equal best SIDs"),
        ("difference", "greatest difference of a score (nats)"),
        ("illegal", "greatest share of beams that are no SID"),
    ):
        parser.add_argument(f"--{name}", type=float, help=f"threshold: {text}")
    options = parser.parse_args(arguments)
    for name, value in (("prompts", options.prompts), ("beams", options.beams)):
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; expected at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Check an engine; the exit status."""
    options = _options(arguments)
    engine = ENGINES[options.engine]
    values = {name: getattr(options, name) for name in ("overlap", "top1", "difference", "illegal")}
    defaults = engine.thresholds.__dict__
    thresholds = Thresholds(**{name: defaults[name] if value is None else value for name, value in values.items()})
    try:
        bundle = Bundle(options.folder, options.prompts)
        if reason := bundle.serving["refused"].get(options.engine):
            raise CannotCheckError(f"{options.engine} cannot serve this model: {reason}")
        longest = max(len(golden.sids) for golden in bundle.golden)
        options.dtype = options.dtype or engine.dtype
        options.beams = options.beams or (2 * longest if options.engine in ("vllm", "sglang") else longest)
        result = compare(bundle, engine.beams(bundle, options), thresholds)
    except (CannotCheckError, ImportError, OSError) as error:
        print(f"cannot check {options.engine}: {error}", file=sys.stderr)
        return 2
    failures = result.failures(thresholds)
    print(f"{options.engine}: {result.prompts} golden prompts, {options.beams} beams, {options.dtype}")
    for name, value, threshold in (
        ("overlap of the lists", f"{result.overlap:.4f}", f"at least {thresholds.overlap}"),
        ("overlap of the first 10", f"{result.overlap_at_10:.4f}", "for display"),
        ("top-1 equal or tied", f"{result.top1:.4f}", f"at least {thresholds.top1}"),
        ("greatest score difference", f"{result.difference:.3g}", f"at most {thresholds.difference}"),
        ("SIDs out of order", str(result.misordered), "0"),
        ("illegal or repeated beams", f"{result.illegal:.2%}", f"at most {thresholds.illegal:.2%}"),
    ):
        print(f"  {name:28}{value:>12}   {threshold}")
    print("agrees" if not failures else "does not agree: " + "; ".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
