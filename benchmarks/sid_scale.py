"""Residual k-means of large catalogs: ours from a memory-mapped file against faiss, equal iterations and training sample.

Claims: at 10^6 x 384 vectors and 3 x 256 codes at most 1.2 times the time of the faster peer, at no more error, and a peak
memory of at most 1.5 times the vectors' size. Peers: faiss's `Kmeans` run level by level on residuals, and faiss's own
`ResidualQuantizer` with beam 1, both on vectors in memory, both trained on 256 vectors per centroid as ours. Every contender
runs in a process of its own, which measures its own peak memory; loading the file counts for nobody's time. Times are CPU
seconds of the one thread that each uses, so that other work on the machine does not blur the ratio.

Run: python benchmarks/sid_scale.py --items 10000 100000 1000000 [--folder FOLDER]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from memory import peak_gb

CODES, LEVELS = 256, 3
PER_CENTROID = 256  # faiss's default
CONTENDERS = ("ours", "faiss Kmeans", "faiss ResidualQuantizer")


def write_vectors(path: Path, items: int, dimensions: int) -> None:
    """Unit vectors around 2,000 centres of unequal weight, written in blocks."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2000, dimensions)).astype(np.float32)
    weights = rng.dirichlet(np.full(2000, 0.5))
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (items, dimensions))
    for start in range(0, items, 50_000):
        count = min(50_000, items - start)
        block = centres[rng.choice(2000, count, p=weights)] + rng.normal(size=(count, dimensions)).astype(np.float32)
        rows[start : start + count] = block / np.linalg.norm(block, axis=1, keepdims=True)
    rows.flush()


def ours(path: Path, iterations: int, seed: int) -> dict[str, float]:
    from minionerec.config import SidConfig
    from minionerec.sid.diagnose import relative_error
    from minionerec.sid.quantize import fit_quantizer

    vectors = np.load(path, mmap_mode="r")
    config = SidConfig(
        method="rq-kmeans",
        codebook_sizes=[CODES] * LEVELS,
        iterations=iterations,
        max_training_vectors=CODES * PER_CENTROID,
        collaborative=0,
    )
    started = time.process_time()
    fitted = fit_quantizer(vectors, config, seed)
    seconds, peak = time.process_time() - started, peak_gb()
    return {"seconds": seconds, "peak": peak, "error": relative_error(vectors, fitted.codes, fitted.quantizer)}


def faiss_kmeans(path: Path, iterations: int, seed: int) -> dict[str, float]:
    import faiss

    faiss.omp_set_num_threads(1)
    residual = np.load(path)
    spread = float(((residual - residual.mean(axis=0, dtype=np.float64).astype(np.float32)) ** 2).sum(dtype=np.float64))
    started = time.process_time()
    for level in range(LEVELS):
        model = faiss.Kmeans(residual.shape[1], CODES, niter=iterations, seed=seed + level)
        model.train(residual)
        codes = model.index.search(residual, 1)[1][:, 0]
        for start in range(0, len(residual), 65536):
            residual[start : start + 65536] -= model.centroids[codes[start : start + 65536]]
    seconds, peak = time.process_time() - started, peak_gb()
    return {"seconds": seconds, "peak": peak, "error": float((residual**2).sum(dtype=np.float64)) / spread}


def faiss_residual_quantizer(path: Path, iterations: int, seed: int) -> dict[str, float]:
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = np.load(path)
    spread = float(((vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)) ** 2).sum(dtype=np.float64))
    started = time.process_time()
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[: CODES * PER_CENTROID])
    quantizer = faiss.ResidualQuantizer(vectors.shape[1], LEVELS, int(np.log2(CODES)))
    quantizer.max_beam_size = 1
    quantizer.train_type = faiss.ResidualQuantizer.Train_default
    quantizer.cp.niter, quantizer.cp.seed = iterations, seed
    quantizer.train(vectors[rows])
    codes = quantizer.compute_codes(vectors)
    seconds, peak = time.process_time() - started, peak_gb()
    error = sum(
        float(((vectors[start : start + 65536] - quantizer.decode(codes[start : start + 65536])) ** 2).sum(dtype=np.float64))
        for start in range(0, len(vectors), 65536)
    )
    return {"seconds": seconds, "peak": peak, "error": error / spread}


RUN = dict(zip(CONTENDERS, (ours, faiss_kmeans, faiss_residual_quantizer), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where the vectors are written; a temporary one otherwise")
    parser.add_argument("--run", nargs=2, metavar=("CONTENDER", "FILE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        print(json.dumps(RUN[chosen.run[0]](Path(chosen.run[1]), chosen.iterations, chosen.seed)))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        lines = []
        for items in chosen.items:
            path = Path(folder) / f"{items}.npy"
            write_vectors(path, items, chosen.dimensions)
            found = {}
            for name in CONTENDERS:
                command = [sys.executable, __file__, "--run", name, str(path), "--iterations", str(chosen.iterations)]
                done = subprocess.run([*command, "--seed", str(chosen.seed)], check=True, capture_output=True, text=True)
                found[name] = json.loads(done.stdout.splitlines()[-1])
            fastest = min(found[name]["seconds"] for name in CONTENDERS[1:])
            size = items * chosen.dimensions * 4 / 1e9
            for name, figures in found.items():
                lines.append(
                    f"{items:>9,} {name:24} {figures['seconds']:8.1f} s {figures['seconds'] / fastest:6.2f} x "
                    f"{figures['error']:8.4f} {figures['peak']:6.2f} GB {figures['peak'] / size:6.2f} x"
                )
                print(lines[-1], flush=True)
            path.unlink()
    print(f"\n{'items':>9} {'contender':24} {'time':>10} {'to faster':>8} {'error':>8} {'peak':>9} {'to data':>8}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
