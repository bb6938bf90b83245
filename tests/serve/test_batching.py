import math
import threading
import time

import pytest

from minionerec.serve.batching import DeadlineError, Job, QueueFullError, StoppedError, Waiting, Worker

pytestmark = pytest.mark.fast


def job(name, group="g", beams=10, length=8, deadline=100.0, settle=lambda outcome: None):
    return Job(group, name, beams, length, deadline, settle)


def waiting(**fields):
    return Waiting(**{"limit": 8, "max_wait": 4.0, "max_batch": 3, "max_beam_rows": 100, **fields})


def names(jobs):
    return [each.payload for each in jobs]


def test_the_first_request_waits_for_others_but_not_longer_than_it_may():
    queue = waiting()
    assert queue.take(0.0) == ([], [], None)
    queue.add([job("a")], now=10.0)
    queue.add([job("b")], now=12.0)
    assert queue.take(12.0) == ([], [], 2.0)
    batch, expired, seconds = queue.take(14.0)
    assert (names(batch), expired, seconds, queue.jobs) == (["a", "b"], [], None, [])


def test_while_others_come_the_first_waits_for_a_quarter_of_a_batch_at_most():
    queue = waiting(max_batch=9)
    queue.add([job("a")], now=10.0)
    queue.add([job("b")], now=13.0)
    assert queue.take(14.0, expected=24.0) == ([], [], 2.0)  # nobody came for less than 4 s, and 6 s are a quarter
    queue.add([job("c")], now=15.0)
    assert queue.take(15.0, expected=24.0) == ([], [], 1.0)
    assert names(queue.take(16.0, expected=24.0)[0]) == ["a", "b", "c"]


def test_who_came_during_a_batch_waits_for_the_clients_of_that_batch():
    queue = waiting(max_batch=9)
    queue.add([job("a")], now=10.0)
    assert queue.take(30.0, expected=40.0, free_since=30.0) == ([], [], 4.0)
    queue.add([job("b")], now=33.0)
    assert queue.take(33.0, expected=40.0, free_since=30.0) == ([], [], 4.0)
    assert names(queue.take(37.0, expected=40.0, free_since=30.0)[0]) == ["a", "b"]


def test_a_full_batch_does_not_wait():
    queue = waiting()
    queue.add([job(name) for name in "abcd"], now=0.0)
    assert names(queue.take(0.0)[0]) == ["a", "b", "c"]
    assert queue.take(0.0) == ([], [], 4.0)  # the fourth waits for others in its turn
    assert names(queue.take(0.0, at_once=True)[0]) == ["d"]


def test_the_beams_of_a_batch_have_a_budget_and_a_request_beyond_it_goes_alone():
    queue = waiting(max_beam_rows=25)
    queue.add([job("a"), job("b"), job("c"), job("wide", group="w", beams=500)], now=0.0)
    assert names(queue.take(0.0)[0]) == ["a", "b"]
    assert names(queue.take(4.0)[0]) == ["c"]
    assert names(queue.take(4.0)[0]) == ["wide"]


def test_only_requests_of_one_group_are_computed_together_and_the_oldest_decides():
    queue = waiting()
    queue.add([job("a", group=50), job("b", group=10), job("c", group=50)], now=0.0)
    assert names(queue.take(4.0)[0]) == ["a", "c"]
    assert names(queue.take(4.0)[0]) == ["b"]


def test_if_more_wait_than_fit_those_as_long_as_the_oldest_join_it_and_none_starves():
    queue = waiting(max_batch=2)
    queue.add([job("long", length=40), job("short", length=3), job("longer", length=50), job("middle", length=20)], now=0.0)
    assert names(queue.take(0.0)[0]) == ["long", "longer"]
    assert names(queue.take(0.0)[0]) == ["short", "middle"]


def test_requests_past_their_deadlines_or_withdrawn_are_not_computed():
    queue = waiting()
    gone = job("gone")
    queue.add([job("late", deadline=3.0), gone, job("b")], now=0.0)
    queue.withdraw([gone])
    batch, expired, _ = queue.take(4.0)
    assert (names(batch), names(expired)) == (["b"], ["late"])


def test_a_request_that_could_not_end_in_time_is_not_computed_in_vain():
    queue = waiting()
    queue.add([job("hopeless", deadline=20.0), job("in time", deadline=26.0)], now=0.0)
    batch, expired, _ = queue.take(17.0, expected=5.0)
    assert (names(batch), names(expired)) == (["in time"], ["hopeless"])
    queue.add([job("slow", deadline=40.0)], now=30.0)
    batch, expired, _ = queue.take(34.0, expected=1000.0)  # more than half of its time is left, and the guess may be wrong
    assert (names(batch), expired) == (["slow"], [])


def test_a_call_finds_room_for_all_its_requests_or_for_none():
    queue = waiting(limit=3)
    assert queue.add([job("a"), job("b")], now=0.0)
    assert not queue.add([job("c"), job("d")], now=0.0)
    assert names(queue.jobs) == ["a", "b"]
    assert queue.add([job("e")], now=0.0)


class Clock:
    """A clock that only moves when told; the first batch holds the worker until it is released."""

    def __init__(self):
        self.now = 0.0
        self.outcomes, self.batches = {}, []
        self.entered, self.released = threading.Event(), threading.Event()

    def compute(self, group, payloads):
        self.batches.append(payloads)
        self.entered.set()
        assert self.released.wait(5)
        self.now += 2.0 * len(payloads)
        if "bad" in payloads:
            raise ValueError("bad")
        return [f"{payload}!" for payload in payloads]

    def job(self, name, **fields):
        return job(name, settle=lambda outcome: self.outcomes.__setitem__(name, outcome), **fields)

    def worker(self, **fields):
        worker = Worker(waiting(max_wait=0.0, **fields), self.compute, clock=lambda: self.now)
        worker.start()
        return worker


@pytest.fixture
def clock():
    return Clock()


def test_while_a_batch_is_computed_the_next_one_gathers(clock):
    worker = clock.worker()
    worker.submit([clock.job("a")])
    assert clock.entered.wait(5)
    worker.submit([clock.job("b")])
    worker.submit([clock.job("late", deadline=1.0), clock.job("c")])
    clock.released.set()
    worker.stop(5)
    assert clock.batches == [["a"], ["b", "c"]]
    assert [clock.outcomes[name].result for name in "abc"] == ["a!", "b!", "c!"]
    assert (clock.outcomes["b"].waited, clock.outcomes["b"].computed) == (2.0, 4.0)
    assert isinstance(clock.outcomes["late"].error, DeadlineError)


def test_a_full_queue_says_when_to_come_again(clock):
    worker = clock.worker(limit=2)
    worker.submit([clock.job("a")])
    assert clock.entered.wait(5)
    worker.submit([clock.job("b"), clock.job("c")])
    with pytest.raises(QueueFullError) as full:
        worker.submit([clock.job("d")])
    assert full.value.seconds == 1  # nothing was measured yet
    clock.released.set()
    worker.stop(5)
    assert set(clock.outcomes) == {"a", "b", "c"}
    with pytest.raises(StoppedError):
        worker.submit([clock.job("e")])


def test_what_could_not_end_in_time_is_refused_at_once(clock):
    worker = clock.worker()
    clock.released.set()
    worker.submit([clock.job("a")])
    while "a" not in clock.outcomes:  # took two seconds of the clock
        time.sleep(0.001)
    clock.entered.clear()
    clock.released.clear()
    worker.submit([clock.job("b")])
    assert clock.entered.wait(5)
    worker.submit([clock.job("c"), clock.job("d"), clock.job("e")])
    with pytest.raises(QueueFullError) as full:
        worker.submit([clock.job("f", deadline=7.0)])  # it is 2 o'clock, and three requests take six seconds
    assert full.value.seconds == 6
    worker.submit([clock.job("g", deadline=9.0)])
    clock.released.set()
    worker.stop(5)


def test_one_request_that_cannot_be_computed_does_not_fail_its_neighbours(clock):
    worker = clock.worker()
    clock.released.set()
    worker.submit([clock.job("a"), clock.job("bad"), clock.job("c")])
    worker.stop(5)
    assert [clock.outcomes[name].result for name in ("a", "bad", "c")] == ["a!", None, "c!"]
    assert str(clock.outcomes["bad"].error) == "bad"


def test_a_stop_waits_only_so_long(clock):
    worker = clock.worker()
    worker.submit([clock.job("a")])
    assert clock.entered.wait(5)
    worker.submit([clock.job("b")])
    worker.stop(0.01)
    assert isinstance(clock.outcomes["b"].error, StoppedError)
    clock.released.set()


def test_the_thread_sleeps_until_a_batch_can_begin_and_delivers_it_as_one():
    """A request that waits for others does not wake the thread up, one that fills the batch does."""
    takes, delivered, done = [], [], threading.Event()
    queue = waiting(max_wait=1000.0, max_batch=3)
    take = queue.take
    queue.take = lambda *arguments: takes.append(len(queue.jobs)) or take(*arguments)

    def deliver(outcomes):
        delivered.append([(each.payload, outcome.result) for each, outcome in outcomes])
        done.set()

    worker = Worker(queue, lambda group, payloads: [f"{payload}!" for payload in payloads], deliver=deliver)
    worker.start()
    for name in "ab":
        worker.submit([job(name, deadline=math.inf)])
        time.sleep(0.05)
    assert takes[-1] == 1 and 2 not in takes  # the second was not looked at
    worker.submit([job("c", deadline=math.inf)])
    assert done.wait(5) and delivered == [[("a", "a!"), ("b", "b!"), ("c", "c!")]]
    worker.stop(5)


def test_beams_that_fill_a_batch_wake_the_thread_up():
    queue, done = waiting(max_wait=1000.0, max_beam_rows=25), threading.Event()
    worker = Worker(queue, lambda group, payloads: payloads, deliver=lambda outcomes: done.set())
    worker.start()
    for name in "abc":  # of three times ten beams two fit
        worker.submit([job(name, deadline=math.inf)])
    assert done.wait(5)
    worker.stop(5)
