"""The count of calls that threads share."""

from threading import Thread

from adaptrix.runtime.calls import Calls


def test_reading_a_count_leaves_it_as_it_is():
    calls = Calls()
    assert [calls.taken, calls.taken] == [0, 0]
    for _ in range(3):
        next(calls.numbers)
    assert [calls.taken, calls.taken, calls.taken] == [3, 3, 3]


def test_no_call_is_lost_where_threads_count_and_read():
    calls, read = Calls(), []

    def work():
        for _ in range(5000):
            next(calls.numbers)
            read.append(calls.taken)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls.taken == 20_000
    assert min(read) >= 1
    assert max(read) == 20_000
