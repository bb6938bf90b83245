import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import TrainerCallback, TrainingArguments

from minionerec.artifacts import Manifest
from minionerec.cli import main
from minionerec.config import Config, ModelConfig, PairsConfig, ScoreConfig, SidConfig, YesNoConfig
from minionerec.errors import ArtifactError, ConfigError, DataError, TrainingError
from minionerec.model import checkpoint
from minionerec.prompts.pairs import PairPrompts
from minionerec.scoring import train
from minionerec.scoring.items import WORDS, Shown, index_of, starting_model
from minionerec.scoring.train import train_yes_no
from minionerec.scoring.trained import score_trained
from minionerec.scoring.trainer import PairCollator, UserPairs, YesNoTrainer
from minionerec.scoring.yes_no import yes_over_no
from minionerec.statistics.pair_metrics import ScoredPairs, auc, per_user
from minionerec.training.scored_pairs import read_scores, scored_pairs
from tests.data.test_pairs import rated_csv
from tests.scoring.data import planted, save
from tests.tree.conftest import tiny

ANSWERS = (7, 9)


def users_of(seed, count=5):
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prefix = rng.integers(0, 40, rng.integers(3, 20)).tolist()
        sizes = rng.integers(1, 4, rng.integers(1, 5))
        prompts = [[*prefix, *rng.integers(0, 40, size).tolist()] for size in sizes]
        made.append(UserPairs(number, prompts, rng.integers(0, 2, len(sizes)).tolist()))
    return made


def one_by_one(model, users):
    """The cross-entropy of every pair, each prompt alone, by the definition of p: (pairs,) nats."""
    losses = []
    for user in users:
        for prompt, label in zip(user.prompts, user.labels, strict=True):
            yes, no = model(torch.tensor([prompt])).logits[0, -1, list(ANSWERS)].exp()
            losses.append(-torch.log(yes / (yes + no) if label else no / (yes + no)))
    return torch.stack(losses)


def trainer_of(model, users, folder, kind=YesNoTrainer, **arguments):
    options = {"max_steps": 1, "per_device_train_batch_size": 1, "learning_rate": 0.0, "use_cpu": True, "report_to": "none"}
    made = TrainingArguments(output_dir=str(folder), remove_unused_columns=False, **options | arguments)
    return kind(model=model, args=made, train_dataset=users, eval_dataset=users, data_collator=PairCollator(ANSWERS, 64))


def test_loss_and_gradients_are_those_of_every_pair_alone(tmp_path):
    users, model, plain = users_of(0), tiny(), tiny()
    trainer = trainer_of(model, users, tmp_path)
    loss = trainer.compute_loss(model, trainer.data_collator(users))
    loss.backward()
    expected = one_by_one(plain, users)
    torch.testing.assert_close(loss, expected.mean())
    expected.mean().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_a_step_is_the_same_in_one_batch_and_in_micro_batches(tmp_path):
    users, weights = users_of(1, 6), []
    for micro in (6, 2):
        model = tiny()
        options = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 6 // micro, "learning_rate": 1e-2}
        trainer_of(model, users, tmp_path, **options, optim="sgd", max_grad_norm=0.0).train()
        weights.append(torch.cat([value.detach().flatten() for value in model.parameters()]))
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)
    assert not torch.equal(weights[0], torch.cat([value.detach().flatten() for value in tiny().parameters()]))


def test_a_validation_has_the_loss_and_the_figures_of_all_pairs(tmp_path):
    users, model = users_of(2, 7), tiny()
    metrics = trainer_of(model, users, tmp_path, per_device_eval_batch_size=3).evaluate()
    with torch.no_grad():
        losses = one_by_one(model, users)
    labels = torch.tensor([label for user in users for label in user.labels])
    scores = torch.where(labels == 1, -1.0, 1.0) * torch.log(torch.expm1(losses))  # the loss says what the score was
    torch.testing.assert_close(binary_cross_entropy_with_logits(scores, labels.float(), reduction="none"), losses)
    numbers = np.array([user.number for user in users for _ in user.labels])
    pairs = ScoredPairs(numbers, labels.numpy(), scores.numpy().astype(float))
    assert metrics["eval_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert metrics["eval_AUC"] == pytest.approx(auc(pairs)[0])
    assert metrics["eval_GAUC"] == pytest.approx(per_user(pairs)["GAUC"].mean())


def test_the_second_loss_is_the_mean_of_the_items_tokens_of_each_history(tmp_path):
    users, model, codes = [replace(user, shared=len(user.prompts[0]) - 3) for user in users_of(3)], tiny(), frozenset(range(20))
    trainer = trainer_of(model, users, tmp_path)
    trainer.data_collator = PairCollator(ANSWERS, 64, 0.5, codes)
    further = []
    for user in users:
        tokens = torch.tensor(user.prompts[0][: user.shared])
        losses = -model(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        of_codes = losses[torch.isin(tokens[1:], torch.tensor(sorted(codes)))]
        further += [of_codes.mean() if len(of_codes) else torch.zeros(())] * len(user.labels)
    expected = one_by_one(model, users).mean()
    inputs = trainer.data_collator(users)
    torch.testing.assert_close(trainer.compute_loss(model, inputs), expected + 0.5 * torch.stack(further).mean())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)  # without it


SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=1, heads=2, vocabulary=500)


@pytest.fixture
def run(tmp_path):
    """A run whose labels hang on the candidate alone, and a model that can learn that in seconds."""
    save(planted("item", users=100, items=8, candidates=6, valid_every=4), tmp_path / "run")
    yes_no = YesNoConfig(items="text", epochs=5, patience=5, batch_size=8, micro_batch=8, learning_rate=1e-2, warmup=2)
    return Config(name="planted", out=str(tmp_path / "run"), model=SIZES, sid=SidConfig(encoder="tfidf"), yes_no=yes_no)


def test_what_is_planted_is_learnt_scored_and_kept(run):
    manifest, fresh = train_yes_no(run)
    assert fresh and manifest.metrics["best_valid_GAUC"] > 0.9
    scored, _ = score_trained(run, "text")
    frame = read_scores(run.folder / "scoring" / "yes-no-text")[1]
    assert scored.metrics["label"] == "from scratch, trained on pairs, items as text"
    assert per_user(scored_pairs(frame))["GAUC"].mean() > 0.9
    log = [json.loads(line) for line in (run.folder / "yes-no" / "text" / "log.jsonl").read_text().splitlines()]
    best = max(row["eval_GAUC"] for row in log if "eval_GAUC" in row)
    assert manifest.metrics["best_valid_GAUC"] == best and not train_yes_no(run)[1] and not score_trained(run, "text")[1]
    with pytest.raises(ConfigError, match=r"yes_no.epochs: 5 there, 2 now"):
        train_yes_no(replace(run, yes_no=replace(run.yes_no, epochs=2)))


@pytest.mark.parametrize("items", ["id", "vector"])
def test_what_is_planted_is_learnt_through_other_representations(run, items):
    config = replace(run, yes_no=replace(run.yes_no, items=items))
    assert train_yes_no(config)[0].metrics["best_valid_GAUC"] > 0.9
    scored, _ = score_trained(config, items)
    assert scored.stage == f"scoring/yes-no-{items}" and scored.metrics["GAUC"] > 0.9
    model, tokenizer = checkpoint.load(config.folder / "yes-no" / items / "model")
    pairs = planted("item", users=100, items=8, candidates=6, valid_every=4)
    index = index_of(config, pairs, items)
    shown = Shown.of(pairs, index, tokenizer)
    assert len(shown.tokens) == 8 and all(len(tokenizer.encode(text)) == 1 for text in shown.items)
    if items == "vector":  # the item's own row counts for nothing, its vector is frozen and stands in its place
        starting = starting_model(config, pairs, index)[0]
        assert torch.equal(model.model.texts.vectors, starting.model.texts.vectors)
        ids = torch.tensor([shown.tokens])
        states = model.model(ids).last_hidden_state
        with torch.no_grad():
            model.get_input_embeddings().weight[shown.tokens] += 1
            assert torch.equal(model.model(ids).last_hidden_state, states)
            model.model.text_in.weight += 0.1
            assert not torch.equal(model.model(ids).last_hidden_state, states)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder with a model of two layers that has random weights and knows the words of the prompts."""
    folder, config = tmp_path_factory.mktemp("model") / "lm", Config(model=replace(SIZES, layers=2))
    checkpoint.save(*starting_model(config, planted("item", items=16), None), folder)
    return str(folder)


@pytest.mark.parametrize("items", ["text", "id"])
def test_adapters_alone_are_saved_and_give_the_scores_of_the_whole_model(run, pretrained, items):
    peft = pytest.importorskip("peft")
    section = replace(run.yes_no, items=items, epochs=1, train="lora", lora_rank=4, lora_alpha=8, tune_from=1)
    config = replace(run, model=ModelConfig("from_pretrained", pretrained), yes_no=section)
    figures = train_yes_no(config)[0].metrics
    assert figures["trainable"] < figures["parameters"] / 4
    folder, pairs = config.folder / "yes-no" / items, planted("item", users=100, items=8, candidates=6, valid_every=4)
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {"1" if ".layers.1." in name else "?" for name in saved if "lora" in name} == {"1"}
    assert all("lora" in name or "token_adapter" in name for name in saved)
    index = index_of(config, pairs, items)
    start, tokenizer = starting_model(config, pairs, index)
    adapted = peft.PeftModel.from_pretrained(start, folder / "adapter").eval()
    whole, _ = checkpoint.load(folder / "model")
    shown = Shown.of(pairs, index, tokenizer)
    prompts = PairPrompts(tokenizer, WORDS, shown.items, breakable=not shown.tokens)
    asked = [prompt for user in train.user_pairs(pairs.valid, prompts) for prompt in user.prompts]
    with torch.no_grad():
        scores = [yes_over_no(model, asked, prompts.answers(), 64) for model in (adapted, whole.eval())]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("items", ["text", "id"])
def test_layers_below_the_first_tuned_one_stay(run, pretrained, items):
    section = replace(run.yes_no, items=items, epochs=1, tune_from=-1)
    config = replace(run, model=ModelConfig("from_pretrained", pretrained), yes_no=section)
    train_yes_no(config)
    pairs = planted("item", users=100, items=8, candidates=6, valid_every=4)
    before = starting_model(config, pairs, index_of(config, pairs, items))[0].state_dict()
    after = checkpoint.load(config.folder / "yes-no" / items / "model")[0].state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    embeddings = {"model.embed_tokens.weight", "lm_head.weight"}
    assert changed & embeddings == (embeddings if items == "id" else set())  # new tokens have to learn their rows
    assert not any(".layers.0." in name for name in changed) and any(".layers.1." in name for name in changed)


def test_parts_that_cannot_train_are_refused(run, pretrained):
    with pytest.raises(ConfigError, match=r"yes_no\.tune_from is 2, but the model has 2 layers: choose -2 to 1"):
        section = replace(run.yes_no, tune_from=2)
        train_yes_no(replace(run, model=ModelConfig("from_pretrained", pretrained), yes_no=section))
    for given, message in (
        ({"lora_rank": 2}, "yes_no.lora_rank is set, but yes_no.train is full"),
        ({"pooling": "mean"}, "yes_no.scheme is yes-no, which makes no vectors"),
        ({"next_code": 1.0, "items": "text"}, "no items' tokens that yes-no could predict"),
        ({"train": "lora", "items": "vector"}, "has to be trained whole"),
    ):
        with pytest.raises(ConfigError, match=message):
            YesNoConfig(**given)
    with pytest.raises(ConfigError, match=r"yes_no\.tune_from is 1, but model.init is from_scratch"):
        Config(yes_no=YesNoConfig(tune_from=1))


def test_an_interrupted_training_ends_with_the_same_weights(run, monkeypatch):
    whole = replace(run, out=str(run.folder.parent / "whole"), yes_no=replace(run.yes_no, epochs=3, micro_batch=4))
    save(planted("item", users=100, items=8, candidates=6, valid_every=4), whole.folder)
    train_yes_no(whole)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 5:  # between the first checkpoint and the second
                raise KeyboardInterrupt

    original = YesNoTrainer.__init__

    def stopping(self, *args, callbacks=(), **kwargs):
        original(self, *args, callbacks=[*callbacks, Stop()], **kwargs)

    short = replace(run, yes_no=whole.yes_no)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(YesNoTrainer, "__init__", stopping)
        train_yes_no(short)
    assert not (run.folder / "yes-no" / "text").exists()
    train_yes_no(short)
    ours, theirs = (load_file(config.folder / "yes-no" / "text" / "model" / "model.safetensors") for config in (short, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_cannot_work_is_refused_and_nothing_is_left(run, tmp_path):
    for config, error, message in (
        (replace(run, model=replace(SIZES, text_input=True)), ConfigError, "model.text_input is true"),
        (replace(run, yes_no=YesNoConfig(), pairs=PairsConfig("mind", "x")), ConfigError, "such items have no semantic IDs"),
        (replace(run, yes_no=replace(run.yes_no, batch_size=64, micro_batch=64)), ConfigError, "only 25 train users"),
        (replace(run, yes_no=replace(run.yes_no, batch_size=9)), ConfigError, "does not split"),
        (replace(run, yes_no=YesNoConfig()), ArtifactError, "minionerec sid"),
    ):
        with pytest.raises(error, match=message):
            train_yes_no(config)
    pairs = planted("item", users=100, items=8, candidates=6, valid_every=4)
    save(replace(pairs, valid=pairs.valid.filter(label=1)), tmp_path / "one-sided")
    with pytest.raises(DataError, match="no user of the valid split has both labels, so nothing can be chosen by GAUC"):
        train_yes_no(replace(run, out=str(tmp_path / "one-sided")))
    assert not (run.folder / "yes-no").exists() and not (tmp_path / "one-sided" / "yes-no").exists()


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_section(run, monkeypatch):
    original = YesNoTrainer._pair_loss
    monkeypatch.setattr(YesNoTrainer, "_pair_loss", lambda *args: original(*args) * torch.nan)
    with pytest.raises(TrainingError, match=r"The loss of step 1 is not finite .* Lower yes_no.learning_rate"):
        train_yes_no(run)
    assert len(list((run.folder / "yes-no-failed").glob("*.safetensors"))) == 1


def test_the_command_trains_on_semantic_ids(tmp_path, capsys):
    path = rated_csv(tmp_path)
    arguments = ["score", "--config", str(path), "--train", "--score.resamples", "60", "--yes_no.epochs", "1"]
    assert main([*arguments, "--yes_no.batch_size", "4", "--yes_no.micro_batch", "4", "--pairs.valid_share", "0.3"]) == 0
    printed = capsys.readouterr().out
    assert "from scratch, trained on pairs, items as sid" in printed and "yes-no: 1 process" in printed
    trained = Manifest.load(tmp_path / "run" / "yes-no" / "sid")
    weights = tmp_path / "run" / "yes-no" / "sid" / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    assert main(["score", "--config", str(tmp_path / "run")]) == 2
    assert "minionerec score --train" in " ".join(capsys.readouterr().err.split())
    weights.write_bytes(whole)
    assert set(trained.inputs) == {"pairs", "sid"} and train.FOLDER == "yes-no" and ScoreConfig().model is None
    assert main(["sid", "--config", str(path), "--sid.levels", "2", "--replace"]) == 0
    capsys.readouterr()
    assert main(["score", "--config", str(path), "--score.resamples", "60", "--pairs.valid_share", "0.3"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "yes-no-sid: trained with other sid than the run has now; train it again" in told and "items as sid" not in told
