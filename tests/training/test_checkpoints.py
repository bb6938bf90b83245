import json

from minionerec.training.checkpoints import last_checkpoint


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step, complete in ((5, True), (10, True), (15, False), (20, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_text("x" * step)
        size = step if complete else step + 1
        if complete is not None:
            (folder / "complete.json").write_text(json.dumps({"model.safetensors": size}))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]
    assert last_checkpoint(tmp_path / "missing") is None
