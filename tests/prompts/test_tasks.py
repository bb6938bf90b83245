from dataclasses import replace

import hypothesis
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.config import DEFAULT_TASKS, RELEASED_TASKS, TASKS, ModelConfig, PromptsConfig
from minionerec.errors import ConfigError, DataError
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.prompts.tasks import Words, examples_of
from minionerec.sft.trees import build_trees, drawn, examples_by_task
from tests.examples import examples
from tests.small import listed_examples, random_dataset

RELEASED = PromptsConfig(style="alpaca", wording="released", category="industrial and scientific item")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    descriptions = [f"['A {title} that is', 'good, item {item}.']" for item, title in enumerate(dataset.catalog["title"])]
    descriptions[3] = ""
    dataset = replace(dataset, catalog=dataset.catalog.with_columns(description=pl.Series(descriptions)))
    corpus = tokenizer_corpus(dataset, RELEASED, list(TASKS))
    model, tokenizer = scratch.create(corpus, ModelConfig(hidden_size=16, heads=2, vocabulary=500), 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    tokenizer.chat_template = TEMPLATE
    return dataset, index, tokenizer


def shifted(dataset, split):
    """The same dataset with every target of a split replaced by another item."""
    items = len(dataset.catalog)
    frame = dataset.split(split).with_columns(((pl.col("target") + 1) % items).cast(pl.Int32))
    return replace(dataset, **{split: frame})


def texts(tokenizer, example):
    return tokenizer.decode(example.prompt), tokenizer.decode(example.completion, skip_special_tokens=True)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("stride", [1, 3, 6])
@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.reads_history and not task.needs_descriptions])
def test_a_history_prompt_does_not_depend_on_its_answer(parts, task, split, stride):
    dataset, index, tokenizer = parts
    for prompts in (PromptsConfig(), RELEASED):
        made = [
            [e.prompt for e in listed_examples(Prompts(d, index, tokenizer, prompts), task, split, stride)]
            for d in (dataset, shifted(dataset, split))
        ]
        assert made[0] == made[1]


@pytest.mark.parametrize("prompts", [PromptsConfig(), RELEASED], ids=["plain", "released"])
def test_an_item_prompt_does_not_hold_its_answer(parts, prompts):
    dataset, index, _ = parts
    for task in ("title_to_sid", "sid_to_title", "description_to_sid"):
        for example in examples_of(task, dataset, index, "train", 1, Words(prompts)):
            assert example.completion.strip() not in example.question.text()
            assert task == "sid_to_title" or "<a_" not in example.question.text()


@pytest.mark.parametrize("task", TASKS)
def test_tokens_are_those_of_the_text(parts, task):
    dataset, index, tokenizer = parts
    made = list(examples_of(task, dataset, index, "train", 1, Words(PromptsConfig())))
    for example, text in zip(listed_examples(Prompts(dataset, index, tokenizer), task), made, strict=True):
        assert texts(tokenizer, example) == (text.question.text(), text.completion)
        assert (example.completion[-1] == tokenizer.eos_token_id) == (not TASKS[task].answers_with_sid)
        whole = tokenizer(text.question.text() + text.completion)["input_ids"]
        assert whole == [*example.prompt, *example.completion][: len(whole)]  # no token spans the two


def test_the_words_of_the_default_tasks(parts):
    """They decide what a trained model understands: a change here is a change of every model."""
    dataset, index, tokenizer = parts
    row, sids = dataset.train.row(5, named=True), [index.text(item) for item in range(30)]
    expected = {
        "history_sid_to_sid": (
            "The user's items, oldest first:" + "".join(sids[item] for item in row["history"]),
            sids[row["target"]],
        ),
        "title_to_sid": (f"The item with the title {dataset.catalog['title'][5]}:", sids[5]),
        "sid_to_title": (f"The title of the item{sids[5]}:", f" {dataset.catalog['title'][5]}"),
    }
    for task in DEFAULT_TASKS:
        assert texts(tokenizer, listed_examples(Prompts(dataset, index, tokenizer), task)[5]) == expected[task]
    corpus = tokenizer_corpus(dataset)
    assert corpus[60:66] == [
        *("The user's items, oldest first:{sids}", "{sid}", "The item with the title {title}:", "{sid}"),
        *("The title of the item{sid}:", " {title}"),
    ]


def test_the_released_words(parts):
    dataset, index, tokenizer = parts
    row, sids = dataset.train.row(5, named=True), [index.text(item) for item in range(30)]
    history, target = row["history"], row["target"]
    listed, titles = ", ".join(sids[item] for item in history), [dataset.catalog["title"][item] for item in history]
    header = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request. \n\n### Instruction:\n{}\n\n### User Input: \n{}\n\n### Response:\n"
    )
    title = dataset.catalog["title"][target]
    expected = {
        "history_sid_to_sid": (
            "Can you predict the next possible item that the user may expect?",
            f"The user has interacted with items {listed} in chronological order. Can you predict the next possible item that "
            "the user may expect?",
            sids[target],
        ),
        "history_sid_to_title": (
            "Can you recommend the next item for the user based on their interaction history?",
            f"The user has sequentially interacted with items {listed}. Can you recommend the next item for him? Tell me the "
            "title of the item",
            title,
        ),
        "history_title_to_sid": (
            "Based on the user's historical interaction with item titles, predict the semantic ID of the next item they may "
            "expect.",
            "The user has interacted with the following industrial and scientific item items in chronological order: "
            + ", ".join(f'"{one}"' for one in titles)
            + ". Can you predict the next item the user may expect?",
            sids[target],
        ),
    }
    for task, (instruction, question, answer) in expected.items():
        example = listed_examples(Prompts(dataset, index, tokenizer, RELEASED), task)[5]
        assert texts(tokenizer, example) == (header.format(instruction, question), answer)
    made = listed_examples(Prompts(dataset, index, tokenizer, RELEASED), "history_title_to_title")
    prompt, answer = texts(tokenizer, made[5])
    asked = "The user has palyed the following industrial and scientific items before: " + ",\t".join(f'"{t}"' for t in titles)
    assert prompt.endswith(f"### User Input: \n{asked}\n\n### Response:\n") and answer == f'"{title}"'
    instructions = {tokenizer.decode(example.prompt).split("### ")[1] for example in made}
    assert len(instructions) == 11  # each of its wordings occurs
    example = listed_examples(Prompts(dataset, index, tokenizer, RELEASED), "title_to_sid")[5]
    asked = f"Which item has the title: {dataset.catalog['title'][5]}?"
    assert texts(tokenizer, example) == (header.format("Answer the question about item identification.", asked), sids[5])
    assert set(RELEASED_TASKS) < set(TASKS)


def test_descriptions_are_prose_and_items_without_one_are_left_out(parts):
    dataset, index, tokenizer = parts
    made = listed_examples(Prompts(dataset, index, tokenizer), "description_to_sid")
    assert len(made) == 29 and 3 not in {example.target for example in made}
    title = dataset.catalog["title"][0]
    assert tokenizer.decode(made[0].prompt) == f"The item with the description A {title} that is good, item 0.:"
    rows = dataset.train.filter(pl.col("target") != 3)
    told = listed_examples(Prompts(dataset, index, tokenizer), "history_sid_to_description")
    assert [example.target for example in told] == rows["target"].to_list()
    bare = replace(dataset, catalog=dataset.catalog.drop("description"))
    with pytest.raises(DataError, match="history_sid_to_description needs descriptions"):
        listed_examples(Prompts(bare, index, tokenizer), "history_sid_to_description")


def test_the_evaluation_of_the_released_asks_with_another_sentence_and_only_there(parts):
    dataset, index, tokenizer = parts
    mistaken = replace(RELEASED, eval_style="released")
    prompts = Prompts(dataset, index, tokenizer, mistaken)
    prompt = tokenizer.decode(listed_examples(prompts, "history_sid_to_sid", "test")[0].prompt)
    history = dataset.test["history"][0]
    asked = (
        "Can you predict the next possible item the user may expect, given the following chronological interaction history: "
    )
    assert asked + ", ".join(index.text(item) for item in history) in prompt
    assert "### Instruction:\nCan you predict the next possible item that the user may expect?\n" in prompt
    assert mistaken.for_training() == RELEASED


def test_chat(parts):
    dataset, index, tokenizer = parts
    prompts = PromptsConfig(style="chat")
    example = listed_examples(Prompts(dataset, index, tokenizer, prompts), "title_to_sid")[2]
    question = f"Tell which item it is.\n\nThe item with the title {dataset.catalog['title'][2]}:"
    assert tokenizer.decode(example.prompt) == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"prompts.style is chat.*no chat template"):
        listed_examples(Prompts(dataset, index, tokenizer, prompts), "title_to_sid")
    tokenizer.chat_template = TEMPLATE


@pytest.mark.parametrize("stride", [2, 4, 6])
def test_stride_leaves_out_less_than_a_stride_of_the_oldest_items_and_groups_share_a_prompt(parts, stride):
    dataset, index, tokenizer = parts
    whole = listed_examples(Prompts(dataset, index, tokenizer), "history_sid_to_sid")
    cut = listed_examples(Prompts(dataset, index, tokenizer), "history_sid_to_sid", "train", stride)
    header = len(tokenizer("The user's items, oldest first:")["input_ids"])
    groups = {}
    for long, short in zip(whole, cut, strict=True):
        left_out = (len(long.prompt) - len(short.prompt)) // index.levels
        assert 0 <= left_out < stride
        assert long.prompt[header + left_out * index.levels :] == short.prompt[header:]
        assert long.completion == short.completion
        groups.setdefault(short.group, []).append(short)
    for members in groups.values():
        assert len(members) <= stride + 5  # histories of at most 6 items
        longest = max(members, key=lambda example: len(example.prompt)).prompt
        assert all(longest[: len(example.prompt)] == example.prompt for example in members)


@pytest.mark.parametrize("task", ["history_sid_to_sid", "title_to_sid", "history_title_to_sid"])
@pytest.mark.parametrize("prompts", [PromptsConfig(), RELEASED, PromptsConfig(style="chat")], ids=lambda made: made.style)
def test_sft_rl_and_evaluation_use_the_same_prompts(parts, task, prompts):
    dataset, index, tokenizer = parts
    builder = Prompts(dataset, index, tokenizer, prompts)
    evaluation = [tuple(example.prompt) for example in builder.examples(task, "train")]
    trees = build_trees(examples_by_task(builder, [task], "train"), 1).trees
    rl = builder.sample([task], "train", count=None, seed=3)
    asked = [tuple(branch.prompt) for tree in trees for branch in tree]
    assert asked == evaluation if task != "title_to_sid" else sorted(asked) == sorted(evaluation)
    assert sorted(tuple(e.prompt) for e in rl) == sorted(evaluation)


@examples(25)
@hypothesis.example(limit=92, style="alpaca", task="history_title_to_title")
@given(limit=st.integers(24, 160), style=st.sampled_from(["plain", "alpaca"]), task=st.sampled_from(list(TASKS)))
def test_what_is_too_long_loses_whole_items_or_words(parts, limit, style, task):
    dataset, index, tokenizer = parts
    prompts = PromptsConfig(style=style, max_tokens=limit)
    whole = listed_examples(Prompts(dataset, index, tokenizer, PromptsConfig(style=style)), task)
    try:
        made = listed_examples(Prompts(dataset, index, tokenizer, prompts), task)
    except ConfigError as error:
        assert f"prompts.max_tokens is {limit}" in str(error)
        return
    sources = examples_of(task, dataset, index, "train", 1, Words(prompts))
    for short, long, source in zip(made, whole, sources, strict=True):
        assert len(short.prompt) + len(short.completion) <= limit
        assert short.cut == (len(long.prompt) + len(long.completion) > limit)
        if not short.cut:
            assert short == long
        elif source.is_sid:
            assert short.completion == long.completion
        text, question = tokenizer.decode(short.prompt), source.question
        fits = [count for count in range(1, len(question.parts) + 1) if question.text(count) in text]
        words = question.parts[-1 if question.newest else 0].removeprefix(question.mark).split(" ")
        if not fits and not any(question.text(1, count) in text for count in range(1, len(words))):
            # Not even one word fits, so its first characters stay.
            characters = [count for count in range(1, len(words[0])) if question.text(1, 1, count) in text]
            assert characters
            whole_word = text.replace(question.text(1, 1, max(characters)), question.text(1, 1))
            assert len(tokenizer(whole_word)["input_ids"]) + len(short.completion) > limit
        elif fits and max(fits) < len(question.parts):  # and not one more would have fitted
            longer = text.replace(question.text(max(fits)), question.text(max(fits) + 1))
            assert len(tokenizer(longer)["input_ids"]) + len(short.completion) > limit


def test_a_single_long_title_loses_its_last_words(parts):
    dataset, index, tokenizer = parts
    titles = pl.Series([f"{title}{' and more' * 40}" for title in dataset.catalog["title"]])
    dataset = replace(dataset, catalog=dataset.catalog.with_columns(title=titles))
    prompts = PromptsConfig(max_tokens=80)
    for example in listed_examples(Prompts(dataset, index, tokenizer, prompts), "history_title_to_sid", "test"):
        text = tokenizer.decode(example.prompt)
        last = dataset.test["history"][example.row][-1]
        assert text.count("- ") == 1 and titles[last][:20] in text and " and more" in text and example.cut
        assert text.endswith("\nThe next item:") and len(example.prompt) + 3 <= 80


@pytest.mark.parametrize("prompts", [PromptsConfig(max_tokens=128), replace(RELEASED, style="plain", max_tokens=160)])
@pytest.mark.parametrize("task", ["title_to_sid", "history_title_to_sid", "history_title_to_title"])
def test_a_title_without_spaces_loses_its_last_characters(parts, task, prompts):
    dataset, index, tokenizer = parts
    long = "長い商品名" * 40
    titles = pl.Series([long if item % 2 else title for item, title in enumerate(dataset.catalog["title"])])
    dataset = replace(dataset, catalog=dataset.catalog.with_columns(title=titles))
    made = listed_examples(Prompts(dataset, index, tokenizer, prompts), task)
    cut = 0
    for example, source in zip(made, examples_of(task, dataset, index, "train", 1, Words(prompts)), strict=True):
        assert len(example.prompt) + len(example.completion) <= prompts.max_tokens
        question = source.question
        if question.parts[-1].removeprefix(question.mark).rstrip('"') == long:  # it alone is too long
            room, shown = prompts.max_tokens - len(example.completion), tokenizer.decode(example.prompt)
            kept = next(count for count in range(200, 0, -1) if long[:count] in shown)
            longer = tokenizer(question.text(1, 1, kept + 2))["input_ids"]  # a character may take more than a token
            assert 0 < kept < 200 and example.cut and len(longer) > room
            cut += 1
    assert cut > 0


def test_too_long_for_the_model(parts):
    dataset, index, tokenizer = parts
    with pytest.raises(ConfigError, match=r"tokens with one item left of it, the model reads 10"):
        listed_examples(Prompts(dataset, index, tokenizer, context=10), "history_sid_to_sid")


def test_shares_and_truncation_are_counted(parts):
    dataset, index, tokenizer = parts
    prompts, shares = Prompts(dataset, index, tokenizer, PromptsConfig(max_tokens=30)), {"title_to_sid": 0.3}
    for _ in range(2):  # computed, and from the cache
        examples = examples_by_task(prompts, ["history_sid_to_sid", "title_to_sid"], "train", choose=drawn(shares, 1))
        built = build_trees(examples, 1)
        trees, statistics = built.trees, built.statistics
        whole = listed_examples(prompts, "history_sid_to_sid")
        assert statistics["history_sid_to_sid"]["truncated"] == sum(example.cut for example in whole) > 0
        assert statistics["title_to_sid"]["examples"] == 9
        assert sum(len(tree) for tree in trees) == len(whole) + 9
    other = build_trees(examples_by_task(prompts, ["title_to_sid"], "train", choose=drawn(shares, 2)), 1).trees
    assert other != [tree for tree in trees if tree in other]


def test_rl_draws_the_same_share_of_a_task_as_sft(parts):
    dataset, index, tokenizer = parts
    tasks, shares = ["history_sid_to_sid", "title_to_sid"], {"title_to_sid": 0.3}
    prompts = Prompts(dataset, index, tokenizer)
    rl = prompts.sample(tasks, "train", None, 1, shares)
    sft = build_trees(examples_by_task(prompts, tasks, "train", choose=drawn(shares, 1)), 1).trees
    assert sorted(tuple(example.prompt) for example in rl) == sorted(tuple(branch.prompt) for [branch] in sft)
    assert sum(example.row is None for example in rl) == 9
    assert len(prompts.sample(tasks, "train", 5, 1, shares)) == 5
