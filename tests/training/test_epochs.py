from types import SimpleNamespace

import torch
from torch import nn

from minionerec.training import epochs
from minionerec.training.epochs import Epochs, Learner, resume, run_epochs, share_statistics


def test_running_figures_are_those_of_the_main_process(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    monkeypatch.setattr(epochs, "broadcast", lambda values, from_process: torch.full_like(values, 7.0))
    share_statistics(model)
    assert model[1].running_mean.tolist() == model[1].running_var.tolist() == [7.0, 7.0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_every_process_stops_by_the_metric_of_the_main_process(tmp_path, monkeypatch):
    main = iter([0.5, 0.4, 0.6, 0.3, 0.2])  # of the main process; ours would have stopped after the second epoch
    monkeypatch.setattr(epochs, "broadcast_object_list", lambda values: [next(main)])
    model = nn.Linear(1, 1)
    accelerator = SimpleNamespace(num_processes=1, is_main_process=False)
    learner = Learner(model, torch.optim.Adam(model.parameters()), accelerator, tmp_path / "checkpoints")
    schedule = Epochs("toy", "metric", epochs=9, patience=2)
    course = run_epochs(learner, resume(learner), schedule, lambda epoch: 0.0, lambda: 0.1)
    assert (course.epoch, course.best_epoch, course.best) == (5, 2, 0.6)
