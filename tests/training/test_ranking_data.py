import numpy as np
import pytest

from minionerec.errors import DataError
from minionerec.training.ranking_data import from_dataset, from_sequences, read_sequences
from tests.shared import shared
from tests.small import SEQUENCES, leave_one_out, random_dataset


def listed(rows):
    return [(rows.history(row).tolist(), int(rows.target[row])) for row in range(len(rows))]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "three.txt"
    path.write_text("u 1 2 3 4 5 6 7\n\nv 3 1 2\n")  # a blank line is no user
    return path


def test_recbole_slides_over_the_whole_history(file):
    data = from_sequences(file, "recbole", 3)
    assert listed(data.rows["train"]) == [([1], 2), ([1, 2], 3), ([1, 2, 3], 4), ([2, 3, 4], 5)]
    assert listed(data.rows["valid"]) == [([3, 4, 5], 6), ([3], 1)]
    assert listed(data.rows["test"]) == [([4, 5, 6], 7), ([3, 1], 2)]
    assert (data.items, data.users) == (7, ["u", "v"])
    assert [data.training.history(row).tolist() for row in range(2)] == [[1, 2, 3, 4, 5], [3]]


def test_wearec_takes_every_prefix_of_the_last_items_and_the_empty_one(file):
    data = from_sequences(file, "wearec", 3)
    assert listed(data.rows["train"]) == [([], 3), ([3], 4), ([3, 4], 5), ([], 3)]
    assert listed(data.rows["valid"]) == [([3, 4, 5], 6), ([3], 1)]
    test = data.rows["test"]
    assert listed(test) == [([4, 5, 6], 7), ([3, 1], 2)]
    assert test.flat[test.seen[0] : test.stop[0]].tolist() == [1, 2, 3, 4, 5, 6]  # the whole history is hidden


@pytest.mark.parametrize(
    ("name", "protocol", "users", "items", "train"),
    [
        ("Beauty", "recbole", 22363, 12101, 131413),
        ("Beauty", "wearec", 22363, 12101, 150258),
        ("LastFM", "wearec", 1090, 3646, 25726),
    ],
)
def test_sizes_are_those_of_the_published_runs(name, protocol, users, items, train):
    data = from_sequences(shared(f"data/sequential/{name}.txt"), protocol, 50)
    assert (len(data.users), data.items, len(data.rows["train"])) == (users, items, train)
    assert len(data.rows["valid"]) == len(data.rows["test"]) == users
    assert max(rows.stop.max() - rows.stop.min() for rows in data.rows.values()) > 0
    assert all((rows.stop - rows.start).max() <= 50 for rows in data.rows.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty; expected one user a line"),
        ("u 1 2\n", "user 'u': 2 items; leave-one-out needs at least 3"),
        ("u 1 2 x\n", "user 'u': 'x' is no item id; expected whole numbers from 1, 0 is padding"),
        ("u 1 0 2 3\n", "user 'u': '0' is no item id"),
        ("u 1 2 -3\n", "user 'u': '-3' is no item id"),
        ("u 1 2 3\nv\n", "line 2: user 'v' has no items"),
        ("u 1 2 3\nu 3 4 5\n", "line 2: user 'u' has a line above already"),
    ],
)
def test_malformed_files_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        read_sequences(path)
    assert str(raised.value).startswith(str(path)) and message in str(raised.value)


def test_a_missing_file_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"Name it with --baseline.sequences FILE"):
        read_sequences(tmp_path / "none.txt")


def test_a_dataset_is_taken_row_for_row():
    dataset, _ = random_dataset()
    data = from_dataset(dataset, 4)
    for name, rows in data.rows.items():
        frame = dataset.split(name)
        expected = [[item + 1 for item in history][-4:] for history in frame["history"].to_list()]
        assert [history for history, _ in listed(rows)] == expected
        assert (rows.target - 1).tolist() == frame["target"].to_list()
        assert [data.users[user] for user in rows.user] == frame["user"].to_list()


@pytest.mark.parametrize("max_history", [2, 20])
def test_training_interactions_are_all_but_the_last_two(max_history):
    data = from_dataset(leave_one_out(SEQUENCES, 6, max_history), 50)
    own = {data.users[user]: (data.training.history(row) - 1).tolist() for row, user in enumerate(data.training.user)}
    assert own == {user: items[:-2] for user, items in SEQUENCES.items()}


def test_recbole_on_a_file_is_the_leave_one_out_dataset(file):
    # The same examples by both roads.
    sequences = {"u": [0, 1, 2, 3, 4, 5, 6], "v": [2, 0, 1]}
    by_file, by_dataset = from_sequences(file, "recbole", 3), from_dataset(leave_one_out(sequences, 7, 3), 3)
    for name in ("train", "valid", "test"):
        assert listed(by_file.rows[name]) == listed(by_dataset.rows[name])
    assert np.array_equal(by_file.training.flat[:5], by_dataset.training.flat[:5])
