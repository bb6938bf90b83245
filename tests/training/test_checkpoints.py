import os
import shutil
from types import SimpleNamespace

import pytest

from minionerec.training import checkpoints
from minionerec.training.checkpoints import MarkComplete, last_checkpoint

MODEL = "model.safetensors"


def save(folder, step, best=None, callback=None, history=()):
    """Write a checkpoint as Trainer does, and let the callback mark it."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / MODEL).write_text("x" * step)
    arguments = SimpleNamespace(output_dir=str(folder))
    state = SimpleNamespace(global_step=step, best_global_step=best, is_world_process_zero=True, log_history=list(history))
    (callback or MarkComplete()).on_save(arguments, state, SimpleNamespace())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def spoil(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def test_half_written_checkpoints_are_passed_over(tmp_path):
    save(tmp_path, 5, best=5)
    save(tmp_path, 10, best=5)
    for step in (15, 20, 25):
        shutil.copytree(tmp_path / "checkpoint-10", tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-15" / MODEL).unlink()
    (tmp_path / "checkpoint-15/complete.json").write_text('{"checkpoint-15/model.safetensors": [15, "0"]}')
    (tmp_path / "checkpoint-20/complete.json").unlink()
    (tmp_path / "checkpoint-25/complete.json").write_text('{"model.safetensors": 10}')  # as earlier versions wrote it
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5"]
    assert last_checkpoint(tmp_path / "missing") is None


def test_the_newest_and_the_best_stay_whatever_the_clock_says(tmp_path):
    for step, best in ((5, 5), (10, 10), (15, 10), (20, 10)):
        save(tmp_path, step, best)
        hour = 3600 * (100 - step)
        os.utime(tmp_path / f"checkpoint-{step}", (hour, hour))  # the clock was set back before each
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20"]
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")


def test_the_older_checkpoint_stays_until_the_newer_one_is_marked(tmp_path, monkeypatch):
    save(tmp_path, 5, best=5)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "write_json", killed)
        save(tmp_path, 10, best=10)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")


@pytest.mark.parametrize("damaged", ["checkpoint-10", "checkpoint-5"])
def test_a_flipped_bit_of_the_newest_or_the_best_checkpoint_is_found(tmp_path, damaged):
    save(tmp_path, 5, best=5)
    save(tmp_path, 10, best=5)
    spoil(tmp_path / damaged / MODEL)
    assert last_checkpoint(tmp_path) == (None if damaged == "checkpoint-5" else str(tmp_path / "checkpoint-5"))


def test_a_best_model_of_its_own_belongs_to_the_checkpoint(tmp_path):
    for step in (2, 4):
        (tmp_path / f"best-{step}").mkdir()
        (tmp_path / f"best-{step}" / MODEL).write_text("model")
    callback = MarkComplete(lambda history: tmp_path / history[-1])
    save(tmp_path, 4, callback=callback, history=["best-4"])
    assert names(tmp_path) == ["best-4", "checkpoint-4"] and last_checkpoint(tmp_path) is not None
    spoil(tmp_path / "best-4" / MODEL)
    assert last_checkpoint(tmp_path) is None
    save(tmp_path, 6, callback=MarkComplete(lambda history: tmp_path.parent / "sft"))  # nothing has beaten the SFT model
    assert names(tmp_path) == ["checkpoint-6"] and last_checkpoint(tmp_path) is not None
