"""Raw interactions and item text to a Dataset: sources (download), readers (layouts), prepare (the stage)."""

from minionerec.data.dataset import SPLITS, Dataset, SplitName

__all__ = ["SPLITS", "Dataset", "SplitName"]
