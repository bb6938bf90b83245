"""The sft stage, killed without warning after a step: python tests/sft/killed.py STEP --config NAME.

Under torchrun only the second process dies, and only before it is started again.
"""

import os
import sys

from transformers import TrainerCallback

from minionerec.cli import main
from minionerec.sft.trainer import TreeTrainer

STEP = int(sys.argv[1])


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        dies = not elastic or (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0")
        if state.global_step == STEP and dies:
            os._exit(9)


original = TreeTrainer.__init__


def patched(self, *args, callbacks=(), **kwargs):
    original(self, *args, callbacks=[*callbacks, Kill()], **kwargs)


if __name__ == "__main__":
    TreeTrainer.__init__ = patched
    sys.exit(main(["sft", *sys.argv[2:]]))
