"""The sft stage where one rank's loss or gradient is no number: python tests/sft/spoiled.py WHAT STEP ARGUMENTS."""

import os
import sys

import torch

from minionerec.cli import main
from minionerec.sft.trainer import TreeTrainer

WHAT, STEP = sys.argv[1], int(sys.argv[2])
original = TreeTrainer._summed_loss


def spoiled(self, model, *args):
    loss, count = original(self, model, *args)
    if self.state.global_step == STEP - 1 and model.training and os.environ["RANK"] == "1":
        if WHAT == "loss":
            return loss * torch.nan, count
        loss.register_hook(lambda gradient: gradient * torch.nan)
    return loss, count


if __name__ == "__main__":
    TreeTrainer._summed_loss = spoiled
    sys.exit(main(["sft", *sys.argv[3:]]))
