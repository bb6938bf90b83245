"""The check of a GPU: its options, and its table of decoding at tiny size on a CPU."""

import argparse
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from minionerec.cli import parse
from minionerec.config.run_file import recording
from tests.launch import ROOT


@pytest.fixture
def gpu_decode(script):
    return script("gpu_decode")


def gpu_sh(*arguments, cwd=ROOT):
    return subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_its_limits_are_eight_minutes_together():
    text = (ROOT / "benchmarks/gpu.sh").read_text()
    [limits] = re.findall(r"declare -A limits=\((.*)\)", text)
    [known] = re.findall(r"known=\((.*)\)", text)
    [grace] = re.findall(r"grace=(\d+)", text)
    seconds = dict(re.findall(r"\[(\w+)\]=(\d+)", limits))
    checks = 12  # before the first part
    assert checks + sum(int(limit) + int(grace) for limit in seconds.values()) <= 480
    [decode] = re.findall(r"decode=\(--seconds (\d+)\)", text)
    assert int(decode) + 10 <= int(seconds["decode"])  # the last cell begins by then
    assert set(re.findall(r"\[(\w+)\]", limits)) == set(known.split())
    page = (ROOT / "docs/gpu.md").read_text()
    assert all(f"`{name}`" in page for name in known.split())


def test_mistakes_cost_nothing(tmp_path):
    assert "bash benchmarks/gpu.sh --tiny" in gpu_sh("--help").stdout
    (tmp_path / "out").mkdir()
    (tmp_path / "out/decode.log").write_text("x")
    for arguments, message in (
        (["--fast"], "--fast: no such option"),
        (["decode", "decoding"], "decoding: no such part; they are tests decode"),
        (["--out", "out"], "out: holds decode.log already"),
        (["--run"], "--run: needs a path after it"),
        (["--out", "--tiny"], "--out: needs a path after it"),
        (["--run", "out"], "--run out: no run with a finished stage data"),
        (["--model", "none"], "--model none: not found"),
        (["--tiny", "--model", "out"], "--tiny makes a run and a model itself"),
        (["--tiny", "--out", "out/decode.log"], "--out out/decode.log: not a folder"),
        (["--tiny", "--out", "new", "rl", "sft"], "rl: goes on from what the part sft leaves in --out"),
    ):
        done = gpu_sh(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interpreter_that_lacks_packages_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON", str(tmp_path / "none"))
    assert "none: does not run; PYTHON names the interpreter." in gpu_sh("--tiny", cwd=tmp_path).stderr
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(bare))
    done = gpu_sh("--tiny", cwd=tmp_path)
    assert done.returncode == 2 and "bare lacks torch transformers" in done.stderr and "PYTHON=scripts/python" in done.stderr
    assert not (tmp_path / "gpu-results").exists()


def test_a_tiny_run_that_was_interrupted_is_made_again(tmp_path, script):
    gpu_tiny = script("gpu_tiny")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/items.csv").write_text("item,ti")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_tiny, "run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gpu_tiny.main(tmp_path)
    gpu_tiny.main(tmp_path)
    assert (tmp_path / "model/config.json").is_file() and (tmp_path / "run/sid/manifest.json").is_file()


def test_calls_of_the_tiny_check_may_share_a_folder(tmp_path, monkeypatch):
    """The run and the model of the first call serve the second."""
    stub = tmp_path / "python"
    stub.write_text(
        '#!/bin/sh\n[ -z "$PYTHON" ] || exit 9  # scripts/python would call itself\n'
        'echo "$1" >> "$CALLS"\ncase $1 in *gpu_tiny.py) mkdir -p "$2/run" "$2/model" ;; esac\n'
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(stub))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for part in ("decode", "compiled"):
        assert gpu_sh("--tiny", "--out", str(tmp_path / "out"), part).returncode == 0
    calls = [line.rpartition("/")[2] for line in (tmp_path / "calls").read_text().splitlines() if line != "-c"]
    assert calls == ["gpu_tiny.py", "gpu_decode.py", "gpu_decode.py"]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What the script runs on a GPU, as lists of words, from an interpreter that only notes them; and the prepared run."""
    config = parse("run", ["--config", "industrial-smollm2", "--out", str(tmp_path / "run")])
    for stage in ("data", "sid"):
        with recording(config, stage):
            (tmp_path / "run" / stage).mkdir(parents=True)
            (tmp_path / "run" / stage / "manifest.json").write_text("{}")
    (tmp_path / "model").mkdir()
    for name, text in (("python", '[ "$1" = -c ] || { printf "%s\\t" "$@" && echo; } >> "$CALLS"'), ("nvidia-smi", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PYTHON", str(tmp_path / "python"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    done = gpu_sh("--run", "run", "--model", "model", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split("\t")[:-1] for line in (tmp_path / "calls").read_text().splitlines()]


class Parsed(Exception):  # noqa: N818 (nothing has gone wrong)
    """What a script does first with its options."""


def test_what_runs_on_a_gpu_is_what_the_real_parsers_take(calls, script, monkeypatch, tmp_path):
    """`--tiny` passes other options, and no GPU is at hand to notice a field that has another name by now."""
    tests, decode, compiled, sft_step, grpo_step, *product, lists = calls
    assert tests[:4] == ["-m", "pytest", "-m", "cuda"]
    files = [ROOT / path for path in tests if path.startswith("tests/")]
    assert files and all(path.is_file() for path in files)

    def stop(*_):
        raise Parsed

    for (path, *options), first in (
        (decode, "codes_of_run"),
        (compiled, "codes_of_run"),
        (sft_step, "prepared"),
        (grpo_step, "codes_of_run"),
        (lists, "metrics"),
    ):
        module = script(path.removeprefix("benchmarks/").removesuffix(".py"))
        monkeypatch.setattr(module, "check_places", lambda *_: None, raising=False)  # there is no GPU
        monkeypatch.setattr(module, first, stop)
        with pytest.raises(Parsed):
            module.main(options)

    configs = []
    for (*python, stage), options in ((words[:3], words[3:]) for words in product):
        assert python == ["-m", "minionerec"]
        configs.append((stage, parse(stage, options)))
    assert [stage for stage, _ in configs] == ["sft", "rl", "eval"]
    for _, config in configs:
        assert (config.folder, config.model.path) == (tmp_path / "out/run", str(tmp_path / "model"))
        assert (config.sft.row_tokens, config.sft.max_examples, config.sft.normalise_over) == ("auto", 5000, "catalog")
    (_, policy), (_, measured) = configs[1:]
    assert policy.rl == measured.rl and policy.rl.checkpoints == 1  # of 1.6 GB each, in 8 steps


@pytest.mark.parametrize("together", [False, True])
def test_a_side_that_is_cut_off_costs_no_other(together, script, monkeypatch, tmp_path, capsys):
    """What has been measured by then is printed and written."""
    setting, sft_step, grpo_step = map(script, ("setting", "sft_step", "grpo_step"))
    figures = {"seconds": 2.0, "tokens": 5, "peak": 1.0}

    def measured(path, options, *_):
        if "ours" not in options:
            raise SystemExit("cut off")
        return figures, {}

    monkeypatch.setattr(setting, "in_fresh_process", measured)
    monkeypatch.setattr("torch.cuda.is_available", lambda: together)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr(sft_step, "prepared", lambda run: (SimpleNamespace(train=[], catalog=[]), None))
    monkeypatch.setattr(grpo_step, "industrial_codes", lambda: (None, "a catalog"))
    monkeypatch.setattr(setting, "as_completed", lambda processes: processes)  # in order: the second fails after the first
    for module, kept in ((sft_step, {"sides": {"ours": figures}}), (grpo_step, {"prompts": [{"prompt": 64, "ours": figures}]})):
        out = tmp_path / f"{module.__name__}.json"
        with pytest.raises(SystemExit, match="cut off"):
            module.main(["--repeats", "1", "--out", str(out), "--device", "cuda" if together else "cpu"])
        written = json.loads(out.read_text())
        assert written.pop("machine") and written == kept
        assert "ours: 2 s" in capsys.readouterr().out


def test_the_age_of_the_process_is_a_part_of_the_time(gpu_decode, monkeypatch, capsys):
    """Imports take a quarter of a part's limit on a new machine."""
    gpu_decode.main(["--cells", "tiny:1:20", "--device", "cpu", "--seconds", "50"], age=51.0)
    assert "tiny:1:20: left out, the time is over" in capsys.readouterr().out


def test_a_gguf_file_needs_its_reader(tmp_path, monkeypatch):
    (tmp_path / "python").write_text('#!/bin/sh\nshift 2; echo "$@"\n')  # lacks everything
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PYTHON", str(tmp_path / "python"))
    (tmp_path / "folder").mkdir()
    for name in ("model.gguf", "folder/model.gguf"):
        (tmp_path / name).touch()
    for model, lacks in (("model.gguf", True), ("folder", True), ("python", False)):
        message = gpu_sh("--model", model, cwd=tmp_path).stderr
        assert "scipy scikit-learn" in message and ("hypothesis gguf" in message) is lacks


def test_lists_are_written_after_each_pass(script, tmp_path, monkeypatch, capsys):
    gpu_lists = script("gpu_lists")
    histories = SimpleNamespace(to_list=lambda: [[1], [2], [3]])
    answer = SimpleNamespace(items=[SimpleNamespace(index=1)])
    recommender = SimpleNamespace(
        prompts=SimpleNamespace(dataset=SimpleNamespace(test={"history": histories})),
        config=SimpleNamespace(batch_size=2),
        graphs=SimpleNamespace(recorded=2, replayed=3),
        recommend=lambda histories, k: asked.append(len(histories)) or [answer] * len(histories),
    )
    asked: list[int] = []
    kept: list[dict] = []
    monkeypatch.setattr(gpu_lists.Recommender, "load", lambda run, dtype: recommender)
    monkeypatch.setattr(gpu_lists, "write_json", lambda path, figures: kept.append(json.loads(json.dumps(figures))))
    gpu_lists.main([str(tmp_path), "--users", "3"])
    assert asked == [3, 3, 2, 3]  # graphs record every bucket; launches need their kernels only
    assert [sorted(one.get("lists", {}).keys() & {"graphs", "launches", "same_lists"}) for one in kept] == [
        [], ["graphs"], ["graphs", "launches"], ["graphs", "launches", "same_lists"]
    ]  # fmt: skip
    assert "100.0% of the lists are equal" in capsys.readouterr().out


def test_the_table_of_decoding_on_a_cpu(gpu_decode, tmp_path, capsys):
    """All sides of the fp32 model give the same lists, or it would have stopped."""
    out = tmp_path / "decode.json"
    gpu_decode.main(["--cells", "tiny:1:20", "--device", "cpu", "--beams", "5", "--repeats", "1", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "tiny:1:20: graphs" in printed and "100.0% of the SIDs agree" in printed and "| tiny | 1 | 20 |" in printed
    [row] = json.loads(out.read_text())["cells"]
    assert row["agree"] == 1.0 and row["generate_equal"] is True and row["scores_apart"] < 1e-3
    assert {"graphs", "catalog", "launches", "plain", "generate", "profile"} <= row.keys()
    assert row["graphs"]["ms"] > 0 and row["profile"]["calls"] > 100
    with pytest.raises(argparse.ArgumentTypeError, match="is not MODEL:BATCH:PROMPT"):
        gpu_decode.cell("0.5b:200")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpu_decode", ["--device", "cuda"], "torch finds no GPU here; --device cpu needs none"),
        ("gpu_decode", ["--device", "cpu", "--run", "none"], "none is no run with a finished stage sid"),
        ("sft_step", ["--out", "none/x.json"], "--out: the folder none does not exist"),
        ("grpo_step", ["--per-step", "4", "--peer-micro-prompts", "3"], "--peer-micro-prompts: 3 does not divide --per-step 4"),
        ("grpo_step", ["--per-step", "4", "--micro-prompts", "8"], "--micro-prompts: 8 does not divide --per-step 4"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_measured(
    name, options, message, script, monkeypatch, capsys
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        script(name).main(options)
    assert message in capsys.readouterr().err


def test_lists_that_differ_are_refused(gpu_decode):
    import torch

    from minionerec.tree import BeamResult

    leaves, scores = torch.tensor([[0, 1], [2, -1]]), torch.zeros(2, 2)
    lists = BeamResult(leaves[..., None], scores, leaves, scores[:, 0] == 0, scores[:, 0])
    other = BeamResult(leaves[..., None], scores, leaves.flip(0), scores[:, 0] == 0, scores[:, 0])
    assert gpu_decode.agreement(lists, lists, True) == {"agree": 1.0, "scores_apart": 0.0}
    assert gpu_decode.agreement(lists, other, False)["agree"] == 0.0
    with pytest.raises(SystemExit, match=r"other lists: 0.0000 of the SIDs"):
        gpu_decode.agreement(lists, other, True)


def test_what_is_compiled_is_recorded_without_a_twin(gpu_decode, monkeypatch, tmp_path):
    """A twin is not compiled: graphs would show nothing of it."""
    compiled, recorded = [], []
    monkeypatch.setattr(gpu_decode.graphs, "twin", gpu_decode.graphs.twin)  # put back what `main` leaves out
    monkeypatch.setattr(gpu_decode, "compile_model", lambda model, arguments: compiled.append(model))
    out, search = tmp_path / "compiled.json", gpu_decode.graphs.static_search
    monkeypatch.setattr(gpu_decode.graphs, "static_search", lambda model, *rest: recorded.append(model) or search(model, *rest))
    arguments = ["--cells", "tiny:1:20", "--device", "cpu", "--beams", "3", "--repeats", "1", "--out", str(out)]
    gpu_decode.main([*arguments, "--compiled", "parts"])
    [model], [row] = compiled, json.loads(out.read_text())["cells"]
    assert recorded and all(each is model for each in recorded)
    assert (row["compiled"], row["without"]) == ("parts", "twin")
