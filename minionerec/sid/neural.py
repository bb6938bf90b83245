"""Neural quantizers: RQ-VAE, and RQ-KMeans+ that starts from residual k-means."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import numpy as np
import torch
from torch import nn

from minionerec.config import RqVaeConfig, SidConfig
from minionerec.errors import TrainingError
from minionerec.sid.codebooks import ResidualQuantizer
from minionerec.sid.residual import fit_levels, kmeans

log = logging.getLogger(__name__)

_IMPROVEMENT = 0.999  # of the reconstruction error, for an epoch to count as better
_CLIP = 1.0  # L2 norm of the gradient, as in the released code

Layers = tuple[tuple[np.ndarray, np.ndarray], ...]  # per layer, weight (out, in) and bias (out,)


@dataclass(frozen=True)
class NeuralQuantizer:
    """A residual quantizer between an encoder and a decoder.

    Attributes:
        latent: the quantizer of encoded vectors.
        encoder, decoder: layers with ReLU between them.
        skip: encoder and decoder add their output to their input (RQ-KMeans+).
    """

    latent: ResidualQuantizer
    encoder: Layers
    decoder: Layers
    skip: bool = False

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """Centroids per level, (codebook size, latent dimensions) float32."""
        return self.latent.codebooks

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per level, used or not."""
        return self.latent.codebook_sizes

    def encode(self, vectors: np.ndarray, guide: np.ndarray | None = None, block: int = 8192) -> np.ndarray:
        """Codes (items, levels) int32; the encoder decides all of them, so a `guide`, if given, is encoded instead."""
        inputs = vectors if guide is None else guide
        blocks = [inputs[start : start + block] for start in range(0, len(inputs), block)]
        return np.concatenate([self.latent.encode(self._encoded(np.asarray(rows))) for rows in blocks])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The decoder's vectors of (items, levels) codes: (items, dimensions) float64."""
        return _network(self.latent.decode(codes), self.decoder, self.skip)

    def distances(self, vectors: np.ndarray, prefixes: np.ndarray) -> np.ndarray:
        """Squared distance in the latent space of what prefixes leave to each centroid of the next level."""
        return self.latent.distances(self._encoded(vectors), prefixes)

    def _encoded(self, vectors: np.ndarray) -> np.ndarray:
        return _network(vectors.astype(np.float32), self.encoder, self.skip)


class Terms(Protocol):
    """What a method adds to the loss of an RQ-VAE, weighted; `letter.LetterTerms` says what the arguments are."""

    def begin_epoch(self, books: list[np.ndarray]) -> None:
        """Look at the centroids of all levels as an epoch begins."""

    def diversity(self, level: int, codes: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
        """Added to a level's loss."""

    def alignment(self, quantised: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Added to the loss of a batch."""

    def misaligned(self, quantised: np.ndarray) -> float:
        """Added to the reconstruction error, by which the best epoch is chosen."""


@dataclass(frozen=True)
class _Autoencoder:
    """Encoder and decoder while they are trained; `skip` as in `NeuralQuantizer`."""

    encoder: nn.Sequential
    decoder: nn.Sequential
    skip: bool = False

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        latent: torch.Tensor = self.encoder(inputs) + (inputs if self.skip else 0)
        return latent

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.decoder(latent) + (latent if self.skip else 0)
        return outputs

    def parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def quantizer(self, codebooks: nn.ParameterList) -> NeuralQuantizer:
        """The quantizer that these networks and codebooks are now."""
        books = tuple(book.detach().numpy().copy() for book in codebooks)
        layers = tuple(_layers(self.encoder)), tuple(_layers(self.decoder))
        return NeuralQuantizer(ResidualQuantizer(books), *layers, self.skip)


def fit_rqvae(
    vectors: np.ndarray, guide: np.ndarray, config: SidConfig, seed: int, terms: Terms | None = None
) -> tuple[NeuralQuantizer, None]:
    """RQ-VAE (Zeghidour et al. 2021; for SIDs TIGER, arXiv 2305.05065): an autoencoder around a residual quantizer.

    Loss: squared error of the reconstruction, plus per level the codebook's and `commitment` times the encoder's distance to
    the chosen centroid, gradients straight through. Codebooks start from k-means of the first encoding. Training ends by
    itself and the best epoch is kept; unused codes are revived. Encodes the fused vectors, reconstructs the text's.

    Args:
        terms: what else the loss holds.
    """
    torch.manual_seed(seed)
    dimensions, settings = vectors.shape[1], config.rqvae
    widths = [dimensions, *settings.hidden, settings.latent]
    encoder, decoder = _mlp(widths), _mlp(widths[::-1])
    with torch.no_grad():
        encoded = encoder(torch.from_numpy(guide)).numpy()
    start, _ = fit_levels(encoded, encoded, config.sizes, [kmeans], config.iterations, seed)
    return _train(vectors, guide, _Autoencoder(encoder, decoder), start, settings, seed, terms), None


def fit_kmeans_plus(vectors: np.ndarray, guide: np.ndarray, config: SidConfig, seed: int) -> tuple[NeuralQuantizer, None]:
    """RQ-KMeans+ (MiniOneRec's): residual k-means as codebooks, then x + MLP(x) as encoder, trained with RQ-VAE's losses.

    The MLP's last layer starts at zero, so training starts from residual k-means itself. The decoder has the same form.
    """
    torch.manual_seed(seed)
    start, _ = fit_levels(guide, guide, config.sizes, [kmeans], config.iterations, seed)
    widths = [vectors.shape[1], *config.rqvae.hidden, vectors.shape[1]]
    encoder, decoder = _mlp(widths), _mlp(widths[::-1])
    for network in (encoder, decoder):
        nn.init.zeros_(cast(nn.Linear, network[-1]).weight)
    return _train(vectors, guide, _Autoencoder(encoder, decoder, skip=True), start, config.rqvae, seed), None


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        linear = nn.Linear(inner, outer)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _train(
    vectors: np.ndarray,
    guide: np.ndarray,
    networks: _Autoencoder,
    start: ResidualQuantizer,
    settings: RqVaeConfig,
    seed: int,
    terms: Terms | None = None,
) -> NeuralQuantizer:
    """Train until the error over all vectors, and what `terms` add to it, stops falling; the quantizer of the best epoch.

    Args:
        start: where the codebooks begin.
    """
    inputs, targets = torch.from_numpy(guide), torch.from_numpy(vectors)
    codebooks = nn.ParameterList(
        [nn.Parameter(torch.from_numpy(book.copy()), requires_grad=not settings.ema) for book in start.codebooks]
    )
    trained = [*networks.parameters(), *(book for book in codebooks if book.requires_grad)]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)
    order = torch.Generator().manual_seed(seed)
    averages = [(torch.ones(len(book)), book.detach().clone()) for book in codebooks]
    best, best_error, waited = networks.quantizer(codebooks), float("inf"), 0
    for epoch in range(settings.max_epochs):
        used = [torch.zeros(len(book), dtype=torch.bool) for book in codebooks]
        leftovers: list[torch.Tensor] = []
        if terms:
            terms.begin_epoch([book.detach().numpy() for book in codebooks])
        for batch in torch.randperm(len(inputs), generator=order).split(settings.batch_size):
            latent = networks.encode(inputs[batch])
            quantised, loss, leftovers = torch.zeros_like(latent), latent.new_zeros(()), []
            for level, book in enumerate(codebooks):
                residual = latent - quantised.detach()
                leftovers.append(residual.detach())
                codes = torch.cdist(residual.detach(), book.detach()).argmin(dim=1)
                centroid = book[codes]
                used[level][codes] = True
                loss = loss + settings.commitment * (residual - centroid.detach()).pow(2).mean()
                if settings.ema:
                    _move(book, averages[level], residual.detach(), codes, settings.ema)
                else:
                    loss = loss + (residual.detach() - centroid).pow(2).mean()
                if terms:
                    loss = loss + terms.diversity(level, codes, book)
                quantised = quantised + centroid
            # Straight-through: the decoder reads the quantised vectors, but its gradient goes to the encoder.
            through = latent + (quantised - latent).detach()
            loss = (networks.decode(through) - targets[batch]).pow(2).mean() + loss / len(codebooks)
            if terms:
                loss = loss + terms.alignment(through, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, _CLIP)
            optimizer.step()
        current = networks.quantizer(codebooks)
        encoded = current.encode(vectors, guide)
        error = float(((vectors - current.decode(encoded)) ** 2).mean())
        if terms:
            error += terms.misaligned(current.latent.decode(encoded))
        if not np.isfinite(error):
            raise TrainingError(
                f"RQ-VAE training diverged in epoch {epoch + 1}; lower sid.rqvae.learning_rate ({settings.learning_rate})."
            )
        best, best_error, waited = (current, error, 0) if error < best_error * _IMPROVEMENT else (best, best_error, waited + 1)
        if waited == settings.patience:
            break
        if settings.revive:
            for book, used_codes, rows, average in zip(codebooks, used, leftovers, averages, strict=True):
                _revive(book, used_codes, rows, average, order)
    log.info("trained %d epochs; mean squared error %.3g", epoch + 1, best_error)
    return best


def _move(
    book: torch.Tensor, average: tuple[torch.Tensor, torch.Tensor], residual: torch.Tensor, codes: torch.Tensor, decay: float
) -> None:
    """Move centroids to the moving average of their residuals (van den Oord et al. 2017, appendix A.1)."""
    counts, sums = average
    counts.mul_(decay).add_(torch.bincount(codes, minlength=len(book)).float(), alpha=1 - decay)
    sums.mul_(decay).index_add_(0, codes, residual, alpha=1 - decay)
    with torch.no_grad():
        book.copy_(sums / counts.clamp(min=1e-5)[:, None])


def _revive(
    book: torch.Tensor,
    used: torch.Tensor,
    rows: torch.Tensor,
    average: tuple[torch.Tensor, torch.Tensor],
    order: torch.Generator,
) -> None:
    """Put each centroid that no item used in the last epoch onto a random residual of the epoch's last batch."""
    dead = (~used).nonzero()[:, 0]
    drawn = rows[torch.randint(len(rows), (len(dead),), generator=order)]
    with torch.no_grad():
        book[dead] = drawn
    average[0][dead], average[1][dead] = 1.0, drawn


def _layers(network: nn.Sequential) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for layer in network:
        if isinstance(layer, nn.Linear):
            yield layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()


def _network(rows: np.ndarray, layers: Layers, skip: bool) -> np.ndarray:
    outputs = rows
    for number, (weight, bias) in enumerate(layers):
        outputs = outputs @ weight.T + bias
        if number < len(layers) - 1:
            outputs = np.maximum(outputs, 0)
    return outputs + rows if skip else outputs
