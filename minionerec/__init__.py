"""MiniOneRec: generative recommendation with semantic IDs, correct, cheap and readable."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minionerec.recommend.recommender import Recommender

__version__ = "0.1.0"
__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Recommender` when it is first used: it imports torch, which `minionerec --help` must not wait for."""
    if name == "Recommender":
        from minionerec.recommend.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
