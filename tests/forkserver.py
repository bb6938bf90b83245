"""What the server of `launch.forked` imports before it forks: libraries, but nothing of ours.

Without collections of garbage, as an import leaves next to none. What is frozen is in no later collection either: accelerate
asks for a full one after each training, which would take longer than the training of a small model.
"""

import gc
import importlib
import importlib.util
import sys

from tests.quick import settle

LIBRARIES = [
    "accelerate.commands.launch",
    "datasets",
    "deepspeed",
    "jinja2",
    "jsonargparse",
    "peft",
    "plotly.graph_objs._figure",
    "plotly.offline",
    "polars",
    "rich.progress",
    "scipy.stats",
    "sklearn.feature_extraction.text",
    "torch._inductor.compile_fx",  # DeepSpeed
    "torch.distributed.run",
    "transformers.conversion_mapping",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.trainer",
    "trl.trainer.grpo_trainer",
]

gc.disable()
for library in LIBRARIES:
    if importlib.util.find_spec(library.partition(".")[0]):
        importlib.import_module(library)
if "deepspeed" in sys.modules:
    _ = sys.modules["deepspeed"].ops.__compatible_ops__  # it starts a compiler to see which it could make
sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("qwen2")  # makes those of all models
settle()
gc.freeze()
gc.enable()
