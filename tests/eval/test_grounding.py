"""BIGRec: titles are written freely and grounded exactly."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from minionerec.artifacts import MILLISECONDS, Manifest
from minionerec.baselines import trivial
from minionerec.config import NAMING, Config, EvalConfig, MixtureConfig, ModelConfig, PromptsConfig, SftConfig
from minionerec.data.dataset import SPLITS
from minionerec.data.vectors import BaselineVectors
from minionerec.errors import ArtifactError, ConfigError, DataError
from minionerec.eval import grounding
from minionerec.eval.decode import Clock
from minionerec.eval.evaluate import evaluable, evaluate
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import values_per_row
from minionerec.model import checkpoint, scratch
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.prompts.titles import catalog_titles
from minionerec.report.comparison import compare_runs
from minionerec.sft.trees import validation_trees
from tests.small import config, listed_examples, random_dataset

FREE = EvalConfig(num_beams=8, grounding="trained", title_beams=1, title_tokens=6, batch_size=3)


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    corpus = tokenizer_corpus(dataset, PromptsConfig(), [NAMING])
    torch.manual_seed(0)
    model, tokenizer = scratch.create(corpus, ModelConfig(hidden_size=16, heads=2, layers=2), 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return model.eval(), Prompts(dataset, index, tokenizer)


@pytest.mark.parametrize("exclude", [False, True], ids=["kept", "left out"])
def test_the_ranking_is_that_of_all_distances_with_equal_titles_in_catalog_order(exclude):
    rng = np.random.default_rng(0)
    titles = [f"title {number}" for number in rng.integers(0, 25, 40)]  # some items share one
    of_title = {title: rng.normal(size=6).astype(np.float32) for title in titles}
    embedded = np.stack([of_title[title] for title in titles])
    written = np.concatenate([rng.normal(size=(290, 6)), embedded[:10]]).astype(np.float32)  # more than one block
    histories = [rng.choice(40, 3, replace=False).tolist() for _ in written]
    targets = rng.integers(0, 40, len(written))
    examples = pl.DataFrame({"target": targets, "history": histories})
    grounded = grounding.ground(written, titles, embedded, examples, EvalConfig(num_beams=7, exclude_history=exclude))
    for row, vector in enumerate(written):
        distance = [float(np.linalg.norm(vector.astype(float) - item.astype(float))) for item in embedded]
        left_out = set(histories[row]) if exclude else set()
        order = sorted((item for item in range(40) if item not in left_out), key=lambda item: (round(distance[item], 9), item))
        assert grounded.rankings[row].tolist() == order[:7]
        target = int(targets[row])
        if target in left_out:
            assert np.isinf(grounded.best[row])
            continue
        alike = [item for item in order if titles[item] == titles[target]]
        assert grounded.ties[row] == len(alike) and grounded.best[row] == order.index(alike[0])


def slow_list(vector, embedded, scores, weight, left_out):
    """The items and how far they are, nearest first, by BIGRec's formula as it is written."""
    distance = [float(np.linalg.norm(vector.astype(float) - item.astype(float))) for item in embedded]
    far = {}
    for item in range(len(embedded)):
        scaled = (distance[item] - min(distance)) / (max(distance) - min(distance))
        score = (scores[item] - min(scores)) / (max(scores) - min(scores))
        far[item] = scaled / (1 + score) ** weight
    return sorted(((item, far[item]) for item in far if item not in left_out), key=lambda pair: (round(pair[1], 12), pair[0]))


@pytest.mark.parametrize("exclude", [False, True], ids=["kept", "left out"])
@pytest.mark.parametrize("shared", [True, False], ids=["popularity", "scores by row"])
def test_distances_are_weighed_as_the_formula_says(exclude, shared):
    rng = np.random.default_rng(1)
    titles = [f"title {number}" for number in rng.integers(0, 25, 30)]
    of_title = {title: rng.normal(size=4).astype(np.float32) for title in titles}
    embedded = np.stack([of_title[title] for title in titles])
    written = rng.normal(size=(270, 4)).astype(np.float32)  # more than one block
    histories = [rng.choice(30, 3, replace=False).tolist() for _ in written]
    targets = rng.integers(0, 30, len(written))
    scores = rng.integers(0, 6, (1, 30)) if shared else rng.normal(size=(len(written), 30))
    examples = pl.DataFrame({"target": targets, "history": histories}).with_row_index("row")
    options, asked = EvalConfig(num_beams=10, exclude_history=exclude), (written, titles, embedded, examples)

    def of_block(block):
        return scores if shared else scores[block["row"].to_numpy()]

    weights, gains = (0.0, 0.37, 5.0), {}
    for weight in weights:
        grounded = grounding.ground(*asked, options, of_block, [weight])
        gains[weight] = []
        for row, vector in enumerate(written):
            left_out = set(histories[row]) if exclude else set()
            slow = slow_list(vector, embedded, scores[0 if shared else row], weight, left_out)
            assert grounded.rankings[row].tolist() == [item for item, _ in slow[:10]]
            far = dict(slow)
            places = [place for place, (_, other) in enumerate(slow) if abs(other - far.get(int(targets[row]), -1)) < 1e-12]
            gains[weight].append(sum(1 / np.log2(place + 2) for place in places if place < 10) / max(len(places), 1))
    measured = grounding.ground(*asked, options, of_block, weights).measured
    assert [measured[weight]["NDCG@10"] for weight in weights] == pytest.approx([np.mean(gains[weight]) for weight in weights])
    plain, zero = (grounding.ground(*asked, options, *more) for more in ((), (of_block, [0.0])))
    assert all((one == other).all() for one, other in zip(plain.rankings, zero.rankings, strict=True))


def test_what_is_equal_everywhere_weighs_nothing():
    distances, scores = np.array([[3.0, 1.0, 2.0]]), np.array([[7.0, 7.0, 7.0]])
    assert grounding.weighing(distances, scores)(2.0).tolist() == [[1.0, 0.0, 0.5]]
    assert grounding.weighing(np.ones((1, 3)), np.arange(3.0)[None])(2.0).tolist() == [[0.0, 0.0, 0.0]]


def test_distances_are_weighed_with_the_counts_of_popularity_or_the_scores_of_a_baseline(tmp_path):
    dataset, _ = random_dataset()
    examples = dataset.valid.with_row_index("row")[[4, 1]]
    counts = grounding.scores_of("popularity", tmp_path, dataset, "valid")(examples)
    by_count = np.argsort(-counts[0], kind="stable")
    assert by_count.tolist() == trivial.popularity(dataset, len(dataset.catalog), "valid")[0].tolist()
    with pytest.raises(ArtifactError, match=r"eval.title_assistant needs the vectors of a baseline"):
        grounding.scores_of("sasrec", tmp_path, dataset, "valid")
    rng = np.random.default_rng(0)
    items, bias = rng.normal(size=(len(dataset.catalog), 3)), rng.normal(size=len(dataset.catalog))
    states = {split: rng.normal(size=(len(dataset.split(split)), 3)) for split in SPLITS}
    (tmp_path / "baselines/sasrec").mkdir(parents=True)
    BaselineVectors(items, bias, states).save(tmp_path / "baselines/sasrec")
    scores = grounding.scores_of("sasrec", tmp_path, dataset, "valid")(examples)
    expected = [[states["valid"][row] @ items[item] + bias[item] for item in range(len(items))] for row in (4, 1)]
    np.testing.assert_allclose(scores, expected)


def test_short_catalogs_lose_the_history_and_nothing_else():
    embedded = np.eye(4, dtype=np.float32)
    examples = pl.DataFrame({"target": [3], "history": [[0, 1, 0]]})
    grounded = grounding.ground(embedded[3:], list("abcd"), embedded, examples, EvalConfig(num_beams=4, exclude_history=True))
    assert grounded.rankings[0].tolist() == [3, 2]


def test_equal_texts_have_equal_embeddings_however_they_are_batched_and_titles_find_themselves(parts):
    model, prompts = parts
    titles = catalog_titles(prompts, "eval.grounding")
    whole = grounding.embed(model, prompts.tokenizer, [*titles, *titles[::-1], ""], None, 64)
    assert (whole[: len(titles)] == whole[len(titles) : -1][::-1]).all()
    single = grounding.embed(model, prompts.tokenizer, titles, None, 1)
    np.testing.assert_allclose(single, whole[: len(titles)], atol=1e-5)
    end = torch.tensor([[prompts.tokenizer.eos_token_id]])
    with torch.no_grad():  # nothing written is the end token alone; states are those after the final norm
        state = model(end, output_hidden_states=True).hidden_states[-1][0, -1]
    np.testing.assert_allclose(whole[-1], state.numpy(), atol=1e-6)
    examples = pl.DataFrame({"target": range(len(titles)), "history": [[0]] * len(titles)})
    grounded = grounding.ground(single, titles, whole[: len(titles)], examples, FREE)
    assert [ranking[0] for ranking in grounded.rankings] == list(range(len(titles)))


def test_a_title_longer_than_the_model_reads_loses_its_end(parts):
    model, prompts = parts
    tokens = prompts.tokenizer("one long title with many words", add_special_tokens=False)["input_ids"]
    cut = grounding.embed(model, prompts.tokenizer, ["one long title with many words"], 3, 1)
    with torch.no_grad():
        state = model.base_model(torch.tensor([tokens[:3]])).last_hidden_state[0, -1]
    assert len(tokens) > 3
    np.testing.assert_allclose(cut[0], state.numpy(), atol=1e-6)


def test_a_batch_writes_what_single_prompts_and_a_plain_greedy_loop_write(parts):
    model, prompts = parts
    asked = [prompt.tokens for prompt in prompts.title_prompts(prompts.dataset.test["history"].to_list()[:5], 6)]
    batched, single = (
        list(grounding.write_titles(model, prompts.tokenizer, asked, replace(FREE, batch_size=n))) for n in (5, 1)
    )
    greedy = []
    for prompt in asked:
        ids = list(prompt)
        while len(ids) < len(prompt) + 6 and (len(ids) == len(prompt) or ids[-1] != prompts.tokenizer.eos_token_id):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        greedy.append(prompts.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))
    assert batched == single == greedy


def test_rows_are_asked_as_in_training_and_no_prompt_knows_how_long_its_answer_is(parts):
    _, prompts = parts
    histories = prompts.dataset.test["history"].to_list()
    asked = [prompt.tokens for prompt in prompts.title_prompts(histories, 6)]
    assert asked == [example.prompt for example in listed_examples(prompts, NAMING, "test")]
    short = replace(prompts, config=PromptsConfig(max_tokens=40))
    assert max(len(prompt.tokens) for prompt in short.title_prompts(histories, 6)) <= 34
    released = replace(prompts, config=PromptsConfig(wording="released"))
    assert released.written_title(' "gel pen" \n') == "gel pen" and prompts.written_title(" gel pen <a_1>") == "gel pen < a_1>"


def test_what_cannot_be_grounded_is_refused(parts):
    _, prompts = parts
    catalog = prompts.dataset.catalog
    titles = catalog["title"].to_list()
    titles[4] = " "
    untitled = replace(prompts, dataset=replace(prompts.dataset, catalog=catalog.with_columns(title=pl.Series(titles))))
    with pytest.raises(DataError, match=r"1 of 30 items have no title, the first is item 4 \('i4'\)"):
        catalog_titles(untitled, "eval.grounding")
    naming = SftConfig(tasks=[NAMING])
    for wrong, message in (
        ({"eval": FREE}, f"sft.tasks does not name {NAMING}"),
        ({"eval": replace(FREE, grounding="base"), "sft": naming}, "random weights tell no titles apart"),
        ({"eval": FREE, "sft": naming, "model": ModelConfig(text_input=True)}, "model.text_input or model.text_output is true"),
        ({"sft": replace(naming, best_metric="NDCG@10")}, "validations would rank by what was never trained"),
        ({"sft": naming, "eval": replace(FREE, assistant="sasrec")}, "eval.assistant is sasrec, but no task of sft.tasks has"),
        ({"sft": naming, "mixture": MixtureConfig(["markov"])}, r"mixture.components is \['markov'\], but no task"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config(**wrong)
    for alone in ({"title_beams": 2}, {"title_assistant": "popularity"}):
        with pytest.raises(
            ConfigError, match=f"eval.{next(iter(alone))} is set, but it has an effect with eval.grounding only"
        ):
            EvalConfig(**alone)
    for alone in ({"title_weight": 0.5}, {"title_examples": None}):
        with pytest.raises(ConfigError, match=f"eval.{next(iter(alone))} is set, but .* with eval.title_assistant only"):
            replace(FREE, **alone)
    with pytest.raises(ConfigError, match=r"title_examples is set, but nothing is chosen by them, as eval.title_weight is 0.5"):
        replace(FREE, title_assistant="popularity", title_weight=0.5, title_examples=7)
    with pytest.raises(ConfigError, match=r"eval.title_weight is -1; it must be from 0 to 99"):
        replace(FREE, title_assistant="popularity", title_weight=-1)


def test_a_model_of_titles_is_validated_on_titles(parts):
    _, prompts = parts
    titles = validation_trees(prompts, tasks=[NAMING])
    assert len(titles) == len(prompts.dataset.valid) and not any(branch.is_sid for tree in titles for branch in tree)
    both = validation_trees(prompts, tasks=["history_sid_to_sid", NAMING])
    assert all(branch.is_sid for tree in both for branch in tree)


@pytest.mark.parametrize(
    ("content", "message"), [('["one"]', "1 titles for 5 rows"), ("{}", "0 titles for"), ('["cut', "no shard of titles")]
)
def test_a_damaged_shard_of_titles_is_named(parts, tmp_path, content, message):
    """It is there, so it would not be written again; its titles would belong to other rows."""
    model, prompts = parts
    examples = grounding.rows_of(prompts.dataset, "test", 12)
    options = replace(FREE, shard_size=5)
    whole = grounding.write_split(model, prompts, tmp_path, options, "test", examples, Clock())
    assert len(whole) == 12 and whole == grounding.write_split(model, prompts, tmp_path, options, "test", examples, Clock())
    shard = tmp_path / "checkpoints/rows-000000005-000000010.json"
    shard.write_text(content)
    with pytest.raises(ArtifactError, match=rf"{shard.name}: {message}.*Delete it"):
        grounding.write_split(model, prompts, tmp_path, options, "test", examples, Clock())
    shard.unlink()
    assert grounding.write_split(model, prompts, tmp_path, options, "test", examples, Clock()) == whole


def test_a_run_from_titles_to_the_table(tmp_path, caplog, monkeypatch):
    settings = config(
        tmp_path,
        sft={"tasks": [NAMING], "epochs": 2, "evaluations": 1, "row_tokens": 256},
        eval={"grounding": "trained", "title_beams": 2, "title_tokens": 8, "resamples": 50},
    )
    run(settings, ("data", "sid", "sft"))
    assert "sft-titles" in evaluable(settings) and "sft" not in evaluable(settings)
    for name in ("popularity", "sft-titles"):
        evaluate(settings, name)
    folder = settings.folder / "eval/sft-titles"
    manifest = Manifest.load(folder)
    assert set(manifest.files) == {"predictions.jsonl", "metrics.json", "titles.json", "grounding.json"}
    lists, stored = RankedLists.read(folder / "predictions.jsonl"), json.loads((folder / "grounding.json").read_text())
    assert len(json.loads((folder / "titles.json").read_text())) == len(lists) == 40
    assert (stored["items"], stored["items_that_share_a_title"], stored["titles_cut"]) == (48, 0, 0)
    with pytest.raises(ConfigError, match="there is no eval/sft, which the pages need"):
        run(settings, ("report",))
    value = values_per_row(lists, (10,), "item")["HR@10"].mean()  # no two titles are equal, so all three agree
    assert stored["tied_in_expectation"]["HR@10"] == stored["best_of_tied"]["HR@10"] == pytest.approx(value)
    compared = compare_runs([settings.folder], resamples=50)
    [row] = [row for row in compared.recommenders if row.name == "sft-titles"]
    assert row.label == "SFT, titles grounded (BIGRec)" and row.milliseconds == manifest.metrics[MILLISECONDS]
    assert row.milliseconds > Manifest.load(settings.folder / "titles/sft/test").metrics[MILLISECONDS] > 0  # and the ranking
    _, fresh = evaluate(replace(settings, eval=replace(settings.eval, title_beams=2)), "sft-titles")
    assert not fresh
    rows, asked, distances, write = [], [], torch.cdist, grounding.write_titles
    monkeypatch.setattr(grounding, "write_titles", lambda *given: asked.append(len(given[2])) or write(*given))
    monkeypatch.setattr(torch, "cdist", lambda block, *args, **more: rows.append(len(block)) or distances(block, *args, **more))
    check_weighing(settings, lists, stored)
    assert rows == [15, 40, 40, 40]  # once for each row that is weighed: of valid, where a weight is chosen, and of test
    assert asked == [15]  # the titles of test are there, whatever weighs their distances
    monkeypatch.setattr(grounding, "write_titles", lambda model, tokenizer, prompts, config: ("" for _ in prompts))
    monkeypatch.setattr(grounding, "catalog_titles", lambda *given: [f"title {item % 6}" for item in range(48)])
    _, fresh = evaluate(replace(settings, eval=replace(settings.eval, title_tokens=6)), "sft-titles")
    assert fresh and "40 of 40 written titles are empty" in caplog.text
    lists, stored = RankedLists.read(folder / "predictions.jsonl"), json.loads((folder / "grounding.json").read_text())
    value = values_per_row(lists, (10,), "item")["HR@10"].mean()  # eight items share each title
    assert stored["best_of_tied"]["HR@10"] > stored["tied_in_expectation"]["HR@10"] == pytest.approx(value)


def check_weighing(settings, plain, before):
    """A weight that is chosen on valid is that of a search over valid's lists, and the same when it is set."""
    folder, evaluated = settings.folder / "eval/sft-titles", {}
    for weight in (None, "chosen", 0):
        number = evaluated[None][1]["weight"] if weight == "chosen" else weight
        options = replace(settings.eval, title_assistant="popularity", title_weight=number)
        if weight is None:
            options = replace(options, title_examples=15)
        manifest, fresh = evaluate(replace(settings, eval=options), "sft-titles")
        stored = json.loads((folder / "grounding.json").read_text())
        evaluated[weight] = RankedLists.read(folder / "predictions.jsonl"), stored["weighing"], stored
        assert fresh and manifest.metrics["weight"] == stored["weighing"]["weight"]
        assert stored["weighing"]["without"] == before["tied_in_expectation"]
    lists, weighing, stored = evaluated[None]
    tried = weighing["valid"]["NDCG@10"]
    assert weighing["valid"]["examples"] == 15 and len(tried) == 199
    assert tried[str(weighing["weight"])] == max(tried.values())
    assert weighing["weight"] == min(float(weight) for weight, value in tried.items() if value == max(tried.values()))
    assert weighing["weight_per_metric"]["NDCG@10"] == weighing["weight"]
    assert weighing["with_weight_per_metric"]["NDCG@10"] == stored["tied_in_expectation"]["NDCG@10"]
    assert (lists.items.values == evaluated["chosen"][0].items.values).all()
    assert (plain.items.values == evaluated[0][0].items.values).all()
