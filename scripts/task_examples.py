"""Prints docs/tasks.md: one rendered example of every task, in our words and in the released code's.

scripts/python scripts/task_examples.py > docs/tasks.md
"""

from collections.abc import Iterable

import numpy as np
import polars as pl

from minionerec.config import RELEASED_TASKS, DataConfig, PromptsConfig, TaskName
from minionerec.data.dataset import Dataset
from minionerec.data.prepare import build_dataset
from minionerec.prompts.tasks import examples_of
from minionerec.prompts.wordings import HEADER, PLAIN, RELEASED, RELEASED_EVALUATION
from minionerec.sid.index import SidIndex

TITLES = ("Gel pen, black", "Ring binder", "Paper clips", "Stapler")
INTRODUCTION = """\
# Tasks and prompts

`sft.tasks` names the tasks that are trained, `sft.task_shares` the share of a task's examples that is used (all if it
names none), `rl.tasks` those that RL rolls out; their answers are SIDs. `sft.tasks: released` stands for the released code's
five classes in its words: {released}.

`prompts.style` is what surrounds the words, `prompts.wording` whose words they are, and both hold for SFT, RL and
evaluation alike: a model that was trained with other words is refused. This page is printed by `scripts/python
scripts/task_examples.py`, for a user who bought *{first}* and *{second}*, and then *{third}*.

## Our words (`prompts.wording: plain`)
With `prompts.style: plain`, the default, a prompt is the question alone. The list of SIDs is simply continued, so that a
user's histories are beginnings of one another and are computed once."""
RELEASED_TEXT = """
## The released code's words (`prompts.wording: released`)
The sentences come from [MiniOneRec](https://github.com/AkaliKong/MiniOneRec) (`data.py`, Apache License 2.0), its
spelling included; it has no description of the next item and rolls out the description of an item in RL only.
`prompts.category` is what it calls the items: `industrial and scientific items`, `office products`. Where it draws one of
several instructions at random, the row's number decides here. Three things are as ours: a SID ends by itself (the released code
appends a line break and an end token), the answer is not repeated in the prompt (it is in the released code's title prompts),
and RL asks with the same header as SFT (it has none)."""
STYLES = """
## Styles
`prompts.style: alpaca` is the header of the released code, with its trailing spaces:

```text
{header}
```

`prompts.style: chat` puts instruction, an empty line and question into the chat template of the model's tokenizer, as the
user's message, and lets the answer follow; a tokenizer without template is refused.

## The released code's evaluation
Its evaluation script asks with a sentence that no training example has:

> {evaluation}

`prompts.eval_style: released` does the same, and a warning says so: it measures that mistake (docs/reproduction.md), and
has no other use. Validations while a model is trained ask as in training, as the released code's do.

## What is too long
An example may be as long as the model can read, or `prompts.max_tokens` (released: 512). From a longer one the oldest
items of the history are left out, or the last words of a title or description in the question (the last characters of a
single word that is too long, as of a text without spaces); a title or description that is the answer is cut to half of the
limit, without an end token. A SID is never cut. The plan that is printed before training counts what was truncated, task by
task. Tokens are cached by content below `$MINIONEREC_CACHE` and stay in a memory map, which the ranks of a machine share."""


def dataset() -> tuple[Dataset, SidIndex]:
    """Four items and a user who bought them in order."""
    rows = [(f"u{user}", f"i{(user + step) % 4}", step) for user in range(2) for step in range(4)]
    interactions = pl.DataFrame(rows, schema={"user": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row")
    catalog = pl.DataFrame({"item_id": [f"i{item}" for item in range(4)], "title": TITLES, "text": TITLES})
    catalog = catalog.with_columns(description="A good " + pl.col("title").str.to_lowercase() + ".")
    shop, _ = build_dataset(interactions, catalog, DataConfig(max_history=10))
    codes = np.array([[0, 1, 4], [1, 0, 2], [1, 3, 0], [2, 2, 2]], dtype=np.int32)
    return shop, SidIndex(codes, (4, 4, 5), shop.digest)


def cell(text: str) -> str:
    """A text in a Markdown table."""
    return f"<code>{text.replace('<', '&lt;').replace('|', '&#124;')}</code>".replace("\n", "⏎").replace("\t", "⇥")


def rows(tasks: Iterable[TaskName], prompts: PromptsConfig, instructions: bool) -> list[str]:
    """A table's lines; line breaks are shown as ⏎ and tabulators as ⇥."""
    shop, index = dataset()
    head = ["task", *(["instruction"] if instructions else []), "question", "answer"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for task in tasks:
        example = next(e for e in examples_of(task, shop, index, "valid", 1, prompts) if e.target == 2)
        cells = [f"`{task}`", *([cell(example.question.instruction)] if instructions else [])]
        lines.append(f"| {' | '.join([*cells, cell(example.question.text()), cell(example.completion)])} |")
    return lines


def page() -> str:
    """The whole of docs/tasks.md."""
    first, second, third, _ = TITLES
    listed = ", ".join(f"`{task}`" for task in RELEASED_TASKS)
    released = PromptsConfig(wording="released", category="office products")
    return "\n".join(
        [
            INTRODUCTION.format(released=listed, first=first, second=second, third=third),
            "",
            *rows(PLAIN, PromptsConfig(), instructions=False),
            RELEASED_TEXT,
            "",
            *rows(RELEASED, released, instructions=True),
            STYLES.format(
                header=HEADER.format(instruction="{instruction}", question="{question}").rstrip("\n"),
                evaluation=RELEASED_EVALUATION.questions[0].replace("{sids}", "SID, SID, ..."),
            ),
        ]
    )


if __name__ == "__main__":
    print(page())
