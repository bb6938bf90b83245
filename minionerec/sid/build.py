"""Stage `sid`: give every item of the catalogue a semantic ID.

Inputs: `<run>/data` (the catalogue's text). Outputs in `<run>/sid`: `index.json`, `codes.safetensors`, `sid.json`, and a
manifest with the figures of `diagnose`.

Differs from the paper, which embeds with Qwen3-Embedding-4B and quantises with an RQ-VAE or size-constrained RQ-KMeans:
the encoder here is all-MiniLM-L6-v2 by default (22M parameters, runs on a CPU), the quantiser is residual k-means without
a constraint, and items with equal codes are told apart by a minimum-cost assignment at the last level, not by an extra one.

Command: `minionerec sid --config ml-100k.yaml`
"""

import logging
from pathlib import Path

from minionerec import artifacts
from minionerec.artifacts import Manifest
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.sid.collisions import resolve
from minionerec.sid.diagnose import diagnose
from minionerec.sid.encoder import encode
from minionerec.sid.index import SidIndex
from minionerec.sid.quantize import residual_kmeans

log = logging.getLogger(__name__)


def run(config: Config) -> tuple[Manifest, bool]:
    """Build `<run>/sid`, or leave it as it is where config, seed and data are unchanged.

    Returns:
        The manifest, and whether the artefact was made anew.

    Raises:
        ArtifactError: the data stage has not run, its files are damaged, or the disk is full.
        CatalogError: more items than semantic IDs.
        ConfigError, DataError: see `encode`.
    """
    data = artifacts.require(config.folder / "data", "minionerec data prepare --config YOUR.yaml")
    folder, settings, inputs = config.folder / "sid", config.section("sid"), {"data": data.digest}
    if config.sid.encoder not in ("minilm", "tfidf") and Path(config.sid.encoder).is_dir():
        inputs["encoder"] = artifacts.folder_digest(Path(config.sid.encoder))
    key = artifacts.content_hash({"config": settings, "seed": config.seed, "inputs": inputs})
    if artifacts.is_current(folder, key):
        return Manifest.load(folder), False

    dataset = Dataset.load(config.folder / "data")
    with artifacts.write_artifact(folder, stage="sid", key=key, config=settings, inputs=inputs, seed=config.seed) as draft:
        vectors = encode(dataset.catalog["text"].to_list(), config.sid, config.seed)
        sizes = (config.sid.codebook_size,) * config.sid.levels
        quantizer = residual_kmeans(vectors, sizes, iterations=config.sid.iterations, seed=config.seed)
        quantised = quantizer.encode(vectors)
        codes = resolve(quantised, vectors, quantizer, config.sid.collisions)
        SidIndex(codes, sizes, dataset.digest, quantizer.codebooks).save(draft.path)
        draft.metrics = diagnose(quantised, codes, vectors, quantizer)
        log.info("SIDs of %d items; %.1f %% were moved", len(codes), 100 * draft.metrics["moved"])
    return Manifest.load(folder), True
