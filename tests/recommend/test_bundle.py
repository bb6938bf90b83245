"""An exported folder: written whole, read back, and checked against what other engines make of it."""

import json
import math
import os
import random
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from minionerec.artifacts import Manifest, file_hash
from minionerec.cli import main
from minionerec.config import EvalConfig, PromptsConfig, ServeConfig, extras
from minionerec.errors import ArtifactError, ConfigError, DataError
from minionerec.prompts.builder import Prompts
from minionerec.recommend import check
from minionerec.recommend.export import export, push, refusals
from minionerec.recommend.recommender import Recommender
from minionerec.serve.served import ServedModel
from minionerec.sid.index import SidIndex
from tests.eval.samples import DATASET
from tests.launch import ROOT
from tests.recommend.conftest import write_run


@pytest.fixture(scope="module")
def run(make, tmp_path_factory):
    """A finished run of 20 items in 14 SIDs."""
    return write_run(tmp_path_factory.mktemp("runs") / "lamps", make(num_beams=8))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Its export. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("exports") / "bundle"
    umask = os.umask(0o022)
    try:
        export(run, folder)
    finally:
        os.umask(umask)
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture(scope="module")
def opened(exported):
    """The export as the checker reads it."""
    return check.Bundle(exported)


def test_it_is_complete_and_others_may_read_it(exported, run):
    names = {path.name for path in exported.iterdir()}
    weights = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == weights | {
        "serving.json", "sids.json", "trie.safetensors", "catalog.parquet", "golden.jsonl", "check.py", "README.md",
        "manifest.json",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in exported.iterdir()} == {0o644}
    assert (exported / "model.safetensors").read_bytes() == (run / "sft/model/model.safetensors").read_bytes()
    assert set(Manifest.load(exported).files) == names - {"manifest.json"}
    card = (exported / "README.md").read_text()
    assert card.startswith("# a model\n") and card.endswith("## Licence\n\nNone at all.\n") and "\n## Use" not in card
    assert "The user's items, oldest first:{history}" in card and "refused: it runs dense Qwen3" in card
    catalog = pl.read_parquet(exported / "catalog.parquet")
    assert catalog.columns == ["item_id", "title", "categories", "popularity"]  # texts are left out


@pytest.mark.parametrize("filters", [{}, {"deny": ["i3"]}, {"category": "Lamps"}, {"exclude_history": True}])
def test_it_answers_as_the_run_does(exported, run, filters):
    ours, original = Recommender.load(exported), Recommender.load(run)
    histories = [*original.prompts.dataset.test["history"].to_list(), [], ["i3", "i4"], [1] * 30]
    assert ours.recommend(histories, **filters) == original.recommend(histories, **filters)
    assert (ours.config, ours.max_history) == (original.config, original.max_history)


def test_golden_lists_are_the_recommenders(exported, make):
    recommender = make(num_beams=8)
    lines = [json.loads(line) for line in (exported / "golden.jsonl").read_text().splitlines()]
    assert len(lines) == len(DATASET.test) == 12
    for line in lines:
        [answer] = recommender.recommend([line["history"]], k=None)
        assert list(dict.fromkeys(item.score for item in answer.items)) == pytest.approx(line["scores"], abs=1e-5)
        assert answer.exact == line["exact"]
        assert list(map(sum, line["levels"])) == pytest.approx(line["scores"], abs=1e-4)
        assert line["prompt"] == recommender.prompts.ask(recommender.items.read(line["history"], "golden"))


def ragged_prompts(prompts):
    """The same prompts with a catalog in which every third SID has two codes."""
    codes = prompts.index.codes.copy()
    codes[:, 2] = np.arange(len(codes)) % 6
    codes[::3] = np.stack([np.full(7, 5), np.arange(7) % 6, np.full(7, -1)], axis=1)
    codes[codes[:, 0] == 5, 2] = -1
    return replace(prompts, index=SidIndex(codes, prompts.index.codebook_sizes, prompts.dataset.digest))


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
@pytest.mark.parametrize("ragged", [False, True])
def test_plain_transformers_makes_the_golden_lists(make, tmp_path, normalise_over, ragged, capsys):
    recommender = make(num_beams=20, normalise_over=normalise_over)
    if ragged:
        prompts = ragged_prompts(recommender.prompts)
        recommender = Recommender(recommender.model, prompts, config=recommender.config)
    folder = tmp_path / "bundle"
    export(write_run(tmp_path / "run", recommender), folder)
    sampling = {"do_sample": True, "repetition_penalty": 1.3, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(sampling))  # as chat models have; the check must ignore it
    assert check.main(["--engine", "hf", "--folder", str(folder), "--prompts", "4"]) == 0
    assert "hf: 4 golden prompts, " in capsys.readouterr().out
    bundle = check.Bundle(folder, 1)
    assert bundle.trie.ragged == ragged
    [golden] = bundle.golden
    assert {len(sid) for sid in golden.sids} == ({2, 3} if ragged else {3})


def test_the_check_needs_no_minionerec(exported):
    code = (
        "import runpy, sys; sys.modules['minionerec'] = None; "
        "sys.argv = ['check.py', '--engine', 'server', '--url', 'http://127.0.0.1:9']; "
        "runpy.run_path('check.py', run_name='__main__')"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=exported, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "cannot check server: http://127.0.0.1:9/v1/recommend: no answer" in answer.stderr


def golden_beams(opened):
    return [[(tuple(sid), score) for sid, score in golden.score_of.items()] for golden in opened.golden]


def checked(opened, monkeypatch, beams, *arguments):
    """The exit status of a check of an engine that returns these beams."""
    engine = check.Engine(lambda bundle, options: beams, check.Thresholds())
    monkeypatch.setitem(check.ENGINES, "hf", engine)
    return check.main(["--engine", "hf", "--folder", str(opened.folder), *arguments])


def test_an_engine_that_agrees_passes(opened, monkeypatch, capsys):
    beams = golden_beams(opened)
    assert checked(opened, monkeypatch, beams) == 0
    assert capsys.readouterr().out.endswith("agrees\n")
    noisy = [[(sid, score + random.uniform(-1e-5, 1e-5)) for sid, score in answer] for answer in beams]
    assert checked(opened, monkeypatch, noisy) == 0


def with_ties(opened, gap):
    """The export, but the second score of each list is the first's and the last one's is the one's before, up to a gap."""
    changed = []
    for golden in opened.golden:
        scores = [golden.scores[0], golden.scores[0] - gap, *golden.scores[2:-1], golden.scores[-2] - gap]
        changed.append(replace(golden, scores=scores))
    other = check.Bundle(opened.folder)
    other.golden = changed
    return other


def test_ties_may_be_swapped_and_nothing_else(opened):
    thresholds = check.Thresholds()
    for gap, swapped in ((1e-6, 0), (0.1, len(opened.golden))):
        bundle = with_ties(opened, gap)
        beams = golden_beams(bundle)
        answers = [[answer[1], answer[0], *answer[2:]] for answer in beams]
        result = check.compare(bundle, answers, thresholds)
        assert (result.misordered, result.overlap) == (swapped, 1.0)
        assert result.top1 == (1.0 if gap < 1e-4 else 0.0)
        assert bool(result.failures(thresholds)) == (swapped > 0)


@pytest.mark.parametrize(("below", "overlap"), [(1e-6, 1.0), (0.01, 7 / 8)])
def test_the_last_place_may_go_to_a_sid_that_is_tied_with_it(opened, below, overlap):
    bundle = check.Bundle(opened.folder, 1)
    [answer] = golden_beams(bundle)
    outside = next(sid for sid in every_sid(bundle.trie) if sid not in dict(answer))
    result = check.compare(bundle, [[*answer[:-1], (outside, answer[-1][1] - below)]], check.Thresholds())
    assert result.overlap == overlap and bool(result.failures(check.Thresholds())) == (overlap < 1)
    shorter = check.compare(bundle, [answer[:-1]], check.Thresholds())
    assert shorter.overlap == 7 / 8  # a place that is empty is lost


def every_sid(trie, prefix=()):
    following = trie.following(prefix)
    return [tuple(prefix)] if not following else [sid for token in following for sid in every_sid(trie, (*prefix, token))]


def test_illegal_beams_are_counted_and_cost_places(opened, monkeypatch, capsys):
    beams = golden_beams(opened)
    illegal = [[((1, 2, 3), -0.1), *answer[:-2], answer[0]] for answer in beams]
    result = check.compare(opened, illegal, check.Thresholds())
    assert result.illegal == 2 / 8 and result.overlap == 6 / 8 and result.misordered == 0
    assert checked(opened, monkeypatch, illegal) == 1
    assert "25.0% of the beams are illegal, more than 0.0%" in capsys.readouterr().out
    assert checked(opened, monkeypatch, illegal, "--illegal", "0.3", "--overlap", "0.7") == 0
    wider = [[((1, 2, 3), -0.1), *answer] for answer in beams]  # a wider search loses nothing by them
    assert check.compare(opened, wider, check.Thresholds()).overlap == 1.0


@pytest.mark.parametrize(("drift", "status"), [(5e-5, 0), (2e-4, 1), (math.nan, 1), (math.inf, 1)])
def test_scores_that_drift_fail(opened, monkeypatch, drift, status):
    beams = golden_beams(opened)
    beams[3][-1] = (beams[3][-1][0], beams[3][-1][1] + drift)
    assert checked(opened, monkeypatch, beams) == status


def test_a_score_outside_a_proven_list_may_not_exceed_it(opened):
    bundle = check.Bundle(opened.folder)
    outside = next(sid for sid in every_sid(bundle.trie) if sid not in bundle.golden[0].score_of)
    for exact, difference in ((True, True), (False, False)):
        bundle.golden = [replace(opened.golden[0], exact=exact)]
        [answer] = golden_beams(bundle)
        result = check.compare(bundle, [[(outside, answer[0][1] + 1), *answer[:-1]]], check.Thresholds())
        assert (result.difference > 1) == difference


def test_no_answer_is_no_agreement(opened, monkeypatch, capsys):
    nothing = [[] for _ in opened.golden]
    assert checked(opened, monkeypatch, nothing) == 1
    assert checked(opened, monkeypatch, nothing[1:]) == 2
    assert "11 answers to 12 golden prompts" in capsys.readouterr().err


def test_an_engine_that_is_not_there_cannot_be_checked(exported, capsys):
    assert check.main(["--engine", "sglang", "--folder", str(exported)]) == 2
    assert "cannot check sglang: No module named 'sglang'" in capsys.readouterr().err
    assert check.main(["--engine", "server", "--folder", str(exported), "--url", "http://127.0.0.1:9"]) == 2
    assert "no answer" in capsys.readouterr().err
    assert check.main(["--engine", "flashrec", "--folder", str(exported)]) == 2
    assert "flashrec cannot serve this model: it runs dense Qwen3 models only" in capsys.readouterr().err


def test_engines_that_cannot_serve_a_model_are_refused(run, make, tmp_path):
    with pytest.raises(ConfigError, match=r"--for flashrec: it runs dense Qwen3 models only, and this is a qwen2\."):
        export(run, tmp_path / "bundle", "flashrec")
    assert not any(tmp_path.iterdir())
    recommender = make()
    assert set(refusals(recommender)) == {"flashrec"}
    catalog = Recommender(recommender.model, recommender.prompts, config=EvalConfig(normalise_over="catalog"))
    assert "probabilities over the legal next codes" in refusals(catalog)["vllm"]
    ragged = Recommender(recommender.model, ragged_prompts(recommender.prompts))
    assert "SIDs of unequal length" in refusals(ragged)["sglang"]


def test_flashrec_needs_qwen3_and_a_prompt_that_ends_in_a_token_of_its_own(make, tmp_path, monkeypatch):
    recommender = make()
    monkeypatch.setattr(recommender.model.config, "model_type", "qwen3")
    assert "end in the history's last code" in refusals(recommender)["flashrec"]
    prompts = Prompts(
        recommender.prompts.dataset, recommender.prompts.index, recommender.prompts.tokenizer, PromptsConfig(style="alpaca")
    )
    served = Recommender(recommender.model, prompts)
    assert refusals(served) == {}
    with pytest.raises(check.CannotCheckError, match="Export it again with --for flashrec"):
        check._flashrec(SimpleNamespace(serving={}), None)


def test_an_export_is_repeated_for_nothing_and_replaced_only_on_request(run, copied, tmp_path, capsys):
    before = (copied / "manifest.json").read_bytes()
    line = ["export", "--run", str(run), "--to", str(copied)]
    assert main(line) == 0
    assert (copied / "manifest.json").read_bytes() == before
    capsys.readouterr()
    assert main([*line, "--for", "vllm"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert 'holds another export: export.for: "hf" there, "vllm" now Nothing was changed. Pass --replace' in message
    assert main([*line, "--for", "vllm", "--replace"]) == 0
    assert "**vLLM**" in (copied / "README.md").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    for target in (tmp_path / "mine", run, run / "sft", tmp_path / "a file"):
        target.exists() or target.write_text("a file")
        with pytest.raises(ConfigError, match="expected a new folder or an earlier export"):
            export(run, target, replace=True)
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="an exported folder already"):
        export(copied, tmp_path / "again")
    with pytest.raises(ArtifactError, match=r"no finished artefact here\. Make it first: minionerec sft"):
        export(tmp_path / "mine", tmp_path / "again")


def record(folder, name):
    """Have the manifest say that a file is as it now is, as if it had been exported so."""
    manifest = Manifest.load(folder, editable=(name, "README.md"))
    manifest.files[name] = {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
    manifest.save(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "trie.safetensors", "catalog.parquet", "golden.jsonl", "serving.json"])
def test_a_flipped_bit_is_found(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[-20] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}: (its content is not what the manifest says|not valid JSON)"):
        Recommender.load(copied)


def test_an_export_without_its_contract_is_not_taken_for_a_run(copied):
    (copied / "serving.json").unlink()
    with pytest.raises(ArtifactError, match=r"serving\.json"):
        Recommender.load(copied)


def test_a_damaged_export_is_refused(copied):
    (copied / "README.md").write_text("a card of my own")
    assert Recommender.load(copied, "sft").config.num_beams == 8
    assert ServedModel.load(copied, ServeConfig()).digest == Manifest.load(copied, editable=("README.md",)).digest
    with pytest.raises(ConfigError, match=r"stage rl: .* was exported from the stage sft"):
        Recommender.load(copied, "rl")
    serving = json.loads((copied / "serving.json").read_text())

    def refuse(error, match, **changes):
        text = json.dumps({**serving, **changes}, indent=2)
        (copied / "serving.json").write_text(text)
        record(copied, "serving.json")
        with pytest.raises(error, match=match):
            Recommender.load(copied)

    refuse(ArtifactError, "format 'other', this version reads minionerec-bundle-1", format="other")
    refuse(ConfigError, "was trained with other prompts", prompts={**serving["prompts"], "words": {"history_sid_to_sid": "0"}})
    (copied / "serving.json").write_text(json.dumps(serving))
    record(copied, "serving.json")
    for name, content, match in (("trie.safetensors", b"short", "5 bytes"), ("golden.jsonl", None, "missing")):
        path = copied / name
        path.unlink()
        content is None or path.write_bytes(content)
        with pytest.raises(ArtifactError, match=rf"{name}: {match}, the manifest says .* or export it again"):
            Recommender.load(copied)


def test_files_of_two_exports_do_not_mix(copied):
    sids = json.loads((copied / "sids.json").read_text())
    first, second, *rest = sids["items"].items()
    swapped = dict([(first[0], second[1]), (second[0], first[1]), *rest])

    def refuse(items, match):
        (copied / "sids.json").write_text(json.dumps({**sids, "items": items}))
        record(copied, "sids.json")
        with pytest.raises(ArtifactError, match=match):
            Recommender.load(copied)

    refuse(swapped, r"trie\.safetensors: has other SIDs than sids\.json")
    refuse(dict(rest), r"has other items than catalog\.parquet")
    refuse({**sids["items"], first[0]: ["lamp"]}, "'lamp' is no token of level 0")


def test_a_run_without_examples_has_no_golden_lists(make, tmp_path):
    recommender = make()
    dataset = replace(DATASET, **{name: DATASET.test.clear() for name in ("train", "valid", "test")})
    recommender = Recommender(recommender.model, replace(recommender.prompts, dataset=dataset), recommender.trie)
    with pytest.raises(DataError, match="golden lists need histories"):
        export(write_run(tmp_path / "run", recommender), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists() and not (tmp_path / "bundle.partial").exists()


def test_push_uploads_a_private_repository(exported, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *names, **more: calls.append((names, more)))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **more: calls.append(more) or "address")
    assert push(exported, "me/lamps") == "address"
    assert calls[0] == (("me/lamps",), {"private": True, "exist_ok": True})
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("me/lamps", str(exported))
    with pytest.raises(ArtifactError, match="not an exported folder"):
        push(tmp_path, "me/lamps")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="--push a/b/c: "):
        push(exported, "a/b/c")
    with pytest.raises(ArtifactError, match=r"--push me/lamps: .*log in"):
        push(exported, "me/lamps")  # the tests are offline


def test_recommending_and_exporting_need_no_package_of_an_extra(run, exported, tmp_path):
    packages = [*extras._EXTRA_OF]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({packages})); "
        "from minionerec import Recommender; from minionerec.cli import main; "
        f"print(len(Recommender.load({str(exported)!r}).recommend([['i3']], k=5)[0].items)); "
        f"sys.exit(main(['export', '--run', {str(run)!r}, '--to', {str(tmp_path / 'bundle')!r}]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (answer.returncode, answer.stdout.split()) == (0, ["5", str(tmp_path / "bundle")]), answer.stderr
