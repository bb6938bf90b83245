"""What a manifest records of its prompts: the words that the stage uses, and nothing else."""

from dataclasses import asdict, replace

import pytest

from minionerec.config import DEFAULT_TASKS, RECOMMENDING, TASKS, PromptsConfig, Task
from minionerec.errors import ConfigError
from minionerec.prompts import record
from minionerec.prompts.record import check_prompts, prompts_section
from minionerec.prompts.wordings import PLAIN, RELEASED, Wording

pytestmark = pytest.mark.fast

ALPACA = PromptsConfig(style="alpaca", wording="released", category="industrial and scientific item")


def test_a_model_is_asked_as_it_was_trained():
    trained = {"prompts": prompts_section(ALPACA, DEFAULT_TASKS)}
    check_prompts(trained, replace(ALPACA, eval_style="released"), "runs/x/sft")
    for field, value in (("style", "plain"), ("wording", "plain"), ("category", "book"), ("max_tokens", 9)):
        with pytest.raises(
            ConfigError, match=rf"runs/x/sft was trained with other prompts \({field}: .*prompts.{field} {value}"
        ):
            check_prompts(trained, replace(ALPACA, **{field: value}), "runs/x/sft")
    trained["prompts"]["words"] |= {"title_to_sid": "other"}
    with pytest.raises(ConfigError, match=r"other prompts \(words: title_to_sid\), .*words of this version"):
        check_prompts(trained, ALPACA, "runs/x/sft")
    assert asdict(ALPACA).items() <= prompts_section(ALPACA, DEFAULT_TASKS).items()


@pytest.mark.parametrize("style", ["plain", "alpaca"])
def test_a_model_of_an_earlier_version_is_refused(style):
    """It has one digest of all words, used or not."""
    prompts = PromptsConfig(style=style, wording="plain")
    trained = {"prompts": {**asdict(prompts), "words": "df30" * 16}}
    with pytest.raises(ConfigError, match=r"words: one digest of all tasks.*Train it again"):
        check_prompts(trained, prompts, "runs/x/sft")


def changed(wording):
    return replace(wording, questions=tuple(f"{question}!" for question in wording.questions))


@pytest.mark.parametrize("prompts", [PromptsConfig(wording="plain"), ALPACA], ids=["plain", "alpaca"])
def test_only_the_words_that_are_used_count(prompts, monkeypatch):
    tasks = [RECOMMENDING, "title_to_sid"]
    before = prompts_section(prompts, tasks)
    used, unused = (PLAIN, RELEASED) if prompts.wording == "plain" else (RELEASED, PLAIN)
    for words, name in ((used, "sid_to_title"), (unused, "title_to_sid"), (unused, RECOMMENDING)):
        monkeypatch.setitem(words, name, changed(words[name]))
    with_instruction = replace(used["title_to_sid"], instructions=("Which?",))
    if prompts.style == "plain":  # neither instructions nor the header are shown
        monkeypatch.setitem(used, "title_to_sid", with_instruction)
        monkeypatch.setattr(record, "HEADER", "{instruction} {question}")
    assert prompts_section(prompts, tasks) == before
    check_prompts({"prompts": before}, prompts, "runs/x/sft")
    if prompts.style == "alpaca":
        with monkeypatch.context() as patch:
            patch.setattr(record, "HEADER", "{instruction} {question}")
            with pytest.raises(ConfigError, match=r"words: header"):
                check_prompts({"prompts": before}, prompts, "runs/x/sft")
        with monkeypatch.context() as patch:
            patch.setitem(used, "title_to_sid", with_instruction)
            with pytest.raises(ConfigError, match=r"words: title_to_sid"):
                check_prompts({"prompts": before}, prompts, "runs/x/sft")
    monkeypatch.setitem(used, "title_to_sid", changed(used["title_to_sid"]))
    assert prompts_section(prompts, tasks) != before
    with pytest.raises(ConfigError, match=r"words: title_to_sid"):
        check_prompts({"prompts": before}, prompts, "runs/x/sft")


def test_a_task_that_is_gone_is_refused(monkeypatch):
    prompts = PromptsConfig(wording="plain")
    trained = {"prompts": prompts_section(prompts, DEFAULT_TASKS)}
    monkeypatch.delitem(TASKS, "sid_to_title")
    with pytest.raises(ConfigError, match=r"words: sid_to_title"):
        check_prompts(trained, prompts, "runs/x/sft")


def test_a_task_in_one_wording_only_is_refused(monkeypatch):
    monkeypatch.setitem(TASKS, "half_worded", Task("sid", "description"))  # a name that no one will add in both wordings
    monkeypatch.setitem(PLAIN, "half_worded", Wording(("Describe.",), ("The description of{sid}:",), " {description}"))
    with pytest.raises(
        ConfigError,
        match=r"half_worded has no wording under released\. .*PLAIN and RELEASED of .*/wordings.py",
    ):
        prompts_section(PromptsConfig(wording="plain"), ["half_worded"])
