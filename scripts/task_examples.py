"""Prints docs/tasks.md: one rendered example of every task, in our words and in the released code's.

scripts/python scripts/task_examples.py > docs/tasks.md
"""

from collections.abc import Iterable

import numpy as np
import polars as pl

from minionerec.config import RELEASED_TASKS, DataConfig, PromptsConfig, TaskName
from minionerec.data.dataset import Dataset
from minionerec.data.prepare import build_dataset
from minionerec.prompts.tasks import Words, examples_of
from minionerec.prompts.wordings import HEADER, PLAIN, RELEASED, RELEASED_EVALUATION, SEVERAL
from minionerec.sid.index import SidIndex

TITLES = ("Gel pen, black", "Ring binder", "Paper clips", "Stapler")
INTRODUCTION = """\
# Tasks and prompts

`sft.tasks` names the tasks that SFT trains. `sft.task_shares` limits the share of a task's examples; a task without a share
is used whole. `rl.tasks` names the tasks that RL rolls out; their answers must be SIDs. `sft.tasks: released` stands for
the released code's five classes in its words: {released}.

`prompts.style` chooses what stands around the words, `prompts.wording` whose words they are. SFT, RL and evaluation use the
same choice, and a model that was trained with other words for its tasks is refused. Adding a task leaves trained models
current. `scripts/python scripts/task_examples.py` prints this page, for a user who bought *{first}* and *{second}*, then
*{third}*.

## Our words (`prompts.wording: plain`)
With `prompts.style: plain`, the default, a prompt is the question alone. The completion simply continues the list of SIDs.
A user's shorter histories are then beginnings of the longer ones, and all are computed at once."""
RELEASED_TEXT = """
## The released code's words (`prompts.wording: released`)
The sentences come from [MiniOneRec](https://github.com/AkaliKong/MiniOneRec) (`data.py`, Apache License 2.0), with their
spelling. The released code never asks for a description, and uses the description of an item in RL only.
`prompts.category` is what it calls the items: `industrial and scientific items`, `office products`. If a task has several
instructions, the released code draws one at random; here the row's number chooses. Three things stay as in our words: a SID
ends by itself (the released code appends a line break and an end token), the prompt does not repeat the answer (the
released code's title prompts do), and RL asks with the same header as SFT (the released code's RL has none)."""
SEVERAL_TEXT = """
## Several of our words (`prompts.wording: several`)
As LC-Rec does it: a task has several wordings, and SFT draws one for each row (or item) and epoch. The draw is a hash of task,
number and epoch, so an interrupted training resumes with the same words. Validation, RL and evaluation ask with the first,
which is that of the table above. `eval.wordings: mean` also asks with every other wording of `history_sid_to_sid`: their lists
lie beside `predictions.jsonl`, and `wordings.json` has the metrics on items of each wording and their mean (wordings are
averaged for each example, then users are resampled). Histories that are asked about in different words share less of their
computation.
"""
STYLES = """
## Styles
`prompts.style: alpaca` is the header of the released code, with its trailing spaces:

```text
{header}
```

`prompts.style: chat` writes instruction, an empty line and question as the user's message, in the chat template of the
model's tokenizer; the answer follows. A tokenizer without a chat template is refused.

## The released code's evaluation
The released code's evaluation script asks with a sentence that no training example has:

> {evaluation}

`prompts.eval_style: released` does the same and prints a warning. Its only use is to measure that mistake
(docs/reproduction.md). Validations during training ask as in training, in the released code too.

## What is too long
An example may have as many tokens as the model can read, or `prompts.max_tokens` (released: 512). A longer prompt is
shortened: a history loses its oldest items, a title or description its last words, and a single long word its last
characters. A title or description that is the answer is first cut to half of the limit and loses its end token. A SID is
never cut, and every prompt leaves room for the longest SID, so that its length says nothing about the answer. The plan that
is printed before training counts the truncated examples of each task.

Tokens are cached by content below `$MINIONEREC_CACHE`. The cache is read through a memory map, which the processes of a
machine share."""


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
        example = next(e for e in examples_of(task, shop, index, "valid", 1, Words(prompts)) if e.target == 2)
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
            SEVERAL_TEXT,
            "| task | questions |",
            "| --- | --- |",
            *(f"| `{task}` | {'<br>'.join(map(cell, words.questions))} |" for task, words in SEVERAL.items()),
            STYLES.format(
                header=HEADER.format(instruction="{instruction}", question="{question}").rstrip("\n"),
                evaluation=RELEASED_EVALUATION.questions[0].replace("{sids}", "SID, SID, ..."),
            ),
        ]
    )


if __name__ == "__main__":
    print(page())
