"""Every task is complete: it has a name, it is put into both wordings, and each wording has its slots."""

from typing import get_args

import pytest

from minionerec.config import DEFAULT_TASKS, RECOMMENDING, RELEASED_TASKS, TASKS, TaskName
from minionerec.prompts.wordings import PLAIN, RELEASED, RELEASED_EVALUATION, WORDINGS

pytestmark = pytest.mark.fast


def test_the_tasks_are_complete():
    assert set(TASKS) == set(get_args(TaskName)) == set(PLAIN) == set(RELEASED)
    assert {*DEFAULT_TASKS, *RELEASED_TASKS, RECOMMENDING} <= set(TASKS)
    assert (TASKS[RECOMMENDING].shows, TASKS[RECOMMENDING].asks) == ("sids", "sid")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", WORDINGS)
def test_a_wording_has_a_slot_for_what_the_task_shows_and_asks(name, task):
    wording = WORDINGS[name][task]
    assert wording.instructions and wording.questions and "{}" in wording.part
    assert all(question.count("{" + TASKS[task].shows + "}") == 1 for question in wording.questions)
    assert wording.completion.count("{" + TASKS[task].asks + "}") == 1


def test_the_recommending_task_has_one_wording_of_each_kind():
    """A history alone, see `Prompts.ask`, has no number that could choose between several."""
    for wording in (PLAIN[RECOMMENDING], RELEASED[RECOMMENDING], RELEASED_EVALUATION):
        assert len(wording.instructions) == len(wording.questions) == 1
