import dataclasses
import json

import pytest

from minionerec.cli import main
from minionerec.recommend import command


@pytest.fixture
def asked(recommender, monkeypatch, capsys):
    """A function that returns what `minionerec recommend --run RUN` prints."""
    loaded = []
    monkeypatch.setattr(command.Recommender, "load", lambda *arguments: loaded.append(arguments) or recommender)

    def call(*arguments):
        status = main(["recommend", "--run", "RUN", *map(str, arguments)])
        output = capsys.readouterr()
        assert all(str(folder) == "RUN" for folder, *_ in loaded)
        return output.out if status == 0 else " ".join(output.err.split())

    return call


def test_a_list_is_a_table_with_what_one_must_know(asked, tmp_path):
    (tmp_path / "sold out.txt").write_text("\ufeffi1\ni2\n")
    printed = asked("--history", "i0, i5", "--k", 3, "--deny", f"@{tmp_path}/sold out.txt")
    assert "title" in printed and "<a_" in printed and "beams)" in printed
    printed = asked("--history", "", "--stage", "sft", "--allow", '["i3", "i4"]')
    assert "The history is empty: these are the most popular items." in printed
    assert "The list is short. The filters leave 2 items: allow names 2." in printed
    printed = asked("--history", "i0,lamp", "--skip-unknown", "--widest", 60)
    assert "Proven: no other item that may be listed has a higher score" in printed and "Unknown and left out: lamp." in printed
    long = ",".join(f"i{item}" for item in range(9))
    printed = asked("--history", long, "--exclude-history", "--k", 1, "--num-beams", 1)
    assert "The 3 oldest items of the history were left out" in printed and "Not proven to be the top 1 (1 beam)" in printed


def test_the_history_is_left_out_or_kept_as_the_command_says(asked, recommender, monkeypatch):
    def listed(*words):
        return {item["item_id"] for item in json.loads(asked("--history", "i0,i5", "--k", 20, "--json", *words))["items"]}

    assert {"i0", "i5"} <= listed() and not {"i0", "i5"} & listed("--exclude-history")
    monkeypatch.setattr(recommender, "config", dataclasses.replace(recommender.config, exclude_history=True))
    assert not {"i0", "i5"} & listed() and {"i0", "i5"} <= listed("--no-exclude-history")


def test_words_between_colons_are_no_emojis(asked, recommender, monkeypatch):
    monkeypatch.setattr(recommender.items, "titles", [":cat: toy"] * 20)
    assert json.loads(asked("--history", "i0", "--k", 1, "--json"))["items"][0]["title"] == ":cat: toy"
    assert ":cat: toy" in asked("--history", "i0", "--k", 1)


def test_the_search_is_printed_as_a_tree(asked):
    printed = asked("--history", "i0,i5", "--k", 2, "--num-beams", 5, "--explain")
    assert "Each code with its probability among all tokens" in printed and "pruned, best at most" in printed
    assert printed.count("places 1") >= 3 and "more kept, with no item in the list" in printed
    tree = json.loads(asked("--history", "i0,i5", "--k", 2, "--num-beams", 5, "--explain", "--json"))
    assert len(tree["recommendation"]["items"]) == 2 and tree["root"]["beams"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "recommend needs either --history IDS, or --users FILE and --out DIR"),
        (["--history", "i1", "--users", "u.csv", "--out", "x"], "recommend needs either"),
        (["--users", "u.csv"], "--users needs --out DIR"),
        (["--history", "i1", "--out", "x"], "--out belongs to --users"),
        (["--users", "u.csv", "--out", "x", "--json"], "--json belongs to --history"),
        (["--history", "i1", "--engine", "ray"], "--engine belongs to --users"),
        (["--users", "u.csv", "--out", "x", "--engine-workers", "2"], "--engine-workers belongs to --engine ray"),
        (["--history", "cup"], "history 0: the catalog has no item 'cup'"),
        (["--history", "i1", "--deny", "@nothing.txt"], "@nothing.txt: cannot be read"),
        (["--history", "i1", "--k", "0"], "--k"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, arguments, message):
    assert message in asked(*arguments)
