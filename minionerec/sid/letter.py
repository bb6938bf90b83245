"""LETTER (Wang et al., CIKM 2024, arXiv:2405.07314): an RQ-VAE whose SIDs also follow clicks and spread over the codes.

To the loss of `rq-vae` come two terms:

- *alignment*: the quantised vector of an item shall pick the item's own collaborative vector, one of a sequential recommender,
  out of those of the batch: the cross-entropy of their inner products, without temperature. Its gradient goes straight through
  the quantiser to the encoder.
- *diversity*: the centroids of each level are put into groups of equal size by constrained k-means; a chosen centroid shall
  pick another, drawn one of its group out of all other centroids of the level. So centroids of a group come together and
  groups come apart, and the items spread over more codes.

Deviations: both weights count in variances of the vectors, so that the length of the text vectors does not matter; groups have
equal sizes up to one, not bounds; items that the recommender never saw take no part in the alignment; equal codes are separated
by `sid.collisions`, not by a Sinkhorn assignment of the last level in training; and training stops by itself, as for `rq-vae`.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from minionerec.config import SidConfig
from minionerec.errors import ConfigError
from minionerec.sid.codebooks import squared_distances
from minionerec.sid.collaborative import CollaborativeVectors
from minionerec.sid.neural import NeuralQuantizer, fit_rqvae
from minionerec.sid.residual import cluster_means, kmeans

_ROUNDS = 5  # of constrained k-means from a fresh start; later epochs begin with the groups of the one before and need one


def fit_letter(
    vectors: np.ndarray,
    guide: np.ndarray,
    config: SidConfig,
    seed: int,
    collaborative: CollaborativeVectors | None = None,
) -> tuple[NeuralQuantizer, None]:
    """Fit `rq-vae` with LETTER's two terms; with both weights 0 it is `rq-vae` itself.

    Raises:
        ConfigError: there are no collaborative vectors, or they are not `sid.rqvae.latent` long.
        TrainingError: training diverged.
    """
    if collaborative is None:
        raise ConfigError("sid.method letter needs the item vectors of a baseline; set sid.collaborative_model, e.g. sasrec.")
    if (width := collaborative.vectors.shape[1]) != config.rqvae.latent:
        raise ConfigError(
            f"sid.method letter compares quantised vectors of {config.rqvae.latent} numbers (sid.rqvae.latent) with the item "
            f"vectors of {config.collaborative_model}, which have {width}. Set --sid.rqvae.latent {width}, or train the "
            f"baseline with --baseline.hidden_size {config.rqvae.latent} (LETTER: both 32)."
        )
    terms = LetterTerms(collaborative, config, float(vectors.var(axis=0).mean()), seed)
    return fit_rqvae(vectors, guide, config, seed, terms)


class LetterTerms:
    """What LETTER adds to the loss of an RQ-VAE.

    Args:
        unit: the variance per dimension of the vectors to be reconstructed, in which the weights count.
        seed: of the groups and of the drawn codes.
    """

    def __init__(self, collaborative: CollaborativeVectors, config: SidConfig, unit: float, seed: int) -> None:
        self.alignment_weight, self.diversity_weight = unit * config.letter.alignment, unit * config.letter.diversity
        self.count, self.batch_size = config.letter.groups, config.rqvae.batch_size
        self.vectors = torch.from_numpy(np.ascontiguousarray(collaborative.vectors, np.float32))
        self.seen = torch.from_numpy(collaborative.seen)
        seeds = np.random.SeedSequence([seed, 1]).generate_state(2)  # apart from the order of the batches
        self.seed, self.draws = int(seeds[0]), torch.Generator().manual_seed(int(seeds[1]))
        self.groups: list[torch.Tensor] = []  # per level the group of each code, (codes,)
        self.means: list[np.ndarray] = []

    def begin_epoch(self, books: list[np.ndarray]) -> None:
        """Group the centroids anew, (codes, latent) per level."""
        if not self.diversity_weight:
            return
        rounds = 1 if self.means else _ROUNDS
        starts = self.means or [kmeans(book, self.count, 10, self.seed)[0] for book in books]
        grouped = [even_groups(book, start, rounds) for book, start in zip(books, starts, strict=True)]
        self.groups = [torch.from_numpy(labels) for labels, _ in grouped]
        self.means = [means for _, means in grouped]

    def diversity(self, level: int, codes: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
        """The weighted cross-entropy of a drawn code of the same group, (batch,) codes of one level: a number.

        Args:
            book: (codes, latent), the level's centroids; the gradient goes to them alone.
        """
        if not self.diversity_weight:
            return book.new_zeros(())
        logits = (book[codes] @ book.T).scatter(1, codes[:, None], -torch.inf)
        return self.diversity_weight * functional.cross_entropy(logits, self.drawn(level, codes))

    def drawn(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        """For each code another one of its group, each equally likely, (batch,)."""
        groups = self.groups[level]
        partners = (groups[codes][:, None] == groups).scatter(1, codes[:, None], False)
        return torch.multinomial(partners.float(), 1, generator=self.draws)[:, 0]

    def alignment(self, quantised: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The weighted cross-entropy of the items' own collaborative vectors among those of the batch: a number.

        Args:
            quantised: (batch, latent), with the gradient straight through.
            rows: (batch,) the items.
        """
        known = self.seen[rows]
        if not self.alignment_weight or known.sum() < 2:
            return quantised.new_zeros(())
        return self.alignment_weight * alignment_loss(quantised[known], self.vectors[rows[known]])

    def misaligned(self, quantised: np.ndarray) -> float:
        """`alignment` of the whole catalog, in consecutive batches: with the error it says which epoch is best.

        Args:
            quantised: (items, latent).
        """
        if not self.alignment_weight:
            return 0.0
        latent, total = torch.from_numpy(quantised.astype(np.float32)), 0.0
        for rows in torch.arange(len(latent)).split(self.batch_size):
            total += float(self.alignment(latent[rows], rows)) * len(rows)
        return total / len(latent)


def alignment_loss(quantised: torch.Tensor, collaborative: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each row's own collaborative vector among all rows', by inner products; both (rows, latent)."""
    return functional.cross_entropy(quantised @ collaborative.T, torch.arange(len(quantised)))


def even_groups(points: np.ndarray, means: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means into groups of equal size up to one.

    Args:
        points: (points, dimensions).
        means: (groups, dimensions), to begin with.

    Returns:
        the group of each point (points,) int64, and the groups' means (groups, dimensions) float32.
    """
    for _ in range(rounds):
        labels = even_labels(squared_distances(points, means))
        means = cluster_means(points, labels, means)
    return labels, means


def even_labels(distances: np.ndarray) -> np.ndarray:
    """The labels (points,) int64 with the least total distance whose groups have equal sizes up to one.

    >>> even_labels(np.array([[0.0, 9], [1, 9], [2, 9]]))  # (points, groups)
    array([0, 0, 1])
    """
    points, groups = distances.shape
    least, more = divmod(points, groups)
    # Each group has `least` places that must be taken and, if that leaves points over, one that need not be. A row of idleness
    # for each place that stays free makes the assignment square: it may take a place of the second kind only.
    costs = np.repeat(distances, least, axis=1)
    if more:
        idle = np.full((groups - more, groups * least), np.inf)
        costs = np.block([[costs, distances], [idle, np.zeros((groups - more, groups))]])
    _, places = linear_sum_assignment(costs)
    own = places[:points]
    return np.where(own < groups * least, own // max(least, 1), own - groups * least)
