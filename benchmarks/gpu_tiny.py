"""Prepared folders of seconds for `bash benchmarks/gpu.sh --tiny`: a run with data and SIDs, and a language model.

python benchmarks/gpu_tiny.py OUT        # OUT/run, OUT/model
"""

import shutil
import sys
from pathlib import Path

import yaml
from chaos import configuration, write_files

from minionerec.cli import parse
from minionerec.config import ModelConfig
from minionerec.data.dataset import Dataset
from minionerec.model import checkpoint, scratch
from minionerec.pipeline import run
from minionerec.prompts.builder import tokenizer_corpus


def main(out: Path) -> None:
    shutil.rmtree(out / "raw", ignore_errors=True)  # a call that was interrupted may have left a part of it
    write_files(out / "raw")
    values = configuration(out / "raw", out / "run", 0)
    path = out / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    config = parse("run", ["--config", str(path)])
    if config is None:
        raise SystemExit(f"{path}: not read")
    run(config, ("data", "sid"))
    sizes = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)
    model, tokenizer = scratch.create(tokenizer_corpus(Dataset.load(out / "run/data")), sizes, 0)
    part = out / "model.part"
    checkpoint.save(model, tokenizer, part)
    part.rename(out / "model")  # whole or not at all: a later call looks for it


if __name__ == "__main__":
    main(Path(sys.argv[1]))
