"""The tasks that a language model is trained on, by name."""

from typing import Literal

TaskName = Literal[
    "history_sid_to_sid",
    "title_to_sid",
    "sid_to_title",
    "description_to_sid",
    "history_sid_to_title",
    "history_sid_to_description",
    "history_title_to_title",
    "history_title_to_sid",
]
DEFAULT_TASKS: tuple[TaskName, ...] = ("history_sid_to_sid", "title_to_sid", "sid_to_title")
# The released code's five classes: SidSFT, SidItemFeat (both directions), FusionSeqRec, SFTData, TitleHistory2SidSFT.
RELEASED_TASKS: tuple[TaskName, ...] = (
    *DEFAULT_TASKS,
    "history_sid_to_title",
    "history_title_to_title",
    "history_title_to_sid",
)
