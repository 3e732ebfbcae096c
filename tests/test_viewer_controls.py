"""Slow work of the viewer: in line, bounded, and without an error that ends anything."""

import threading

from splatdistill.viewer.controls import MOST_WAITING, Controls
from splatdistill.viewer.server import Address, start_server


def test_slow_work_is_done_in_its_order_and_the_line_is_bounded():
    server, _ = start_server(Address(port=0))
    controls, begun, go_on, done = Controls(server), threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        assert go_on.wait(60)

    assert controls.later("first", first) and begun.wait(60)
    assert not controls.later("first", first)  # it is in line already
    for k in range(MOST_WAITING - 1):
        assert controls.later("change", lambda k=k: done.append(k), once=False)
    assert not controls.later("change", lambda: done.append(-1), once=False)
    last = threading.Event()
    go_on.set()
    while not controls.later("last", last.set):
        pass
    assert last.wait(60) and done == list(range(MOST_WAITING - 1))
    controls.close()
    assert not controls.later("too late", first)
    server.stop()


def test_an_error_is_told_once_and_the_line_goes_on(capfd):
    server, _ = start_server(Address(port=0))
    controls, done = Controls(server), threading.Event()

    def fail() -> None:
        raise RuntimeError("broken\ntwice")

    for _ in range(3):
        controls.later("fail", fail, once=False)
    controls.later("after", done.set)
    assert done.wait(60)
    controls.close()
    server.stop()
    assert capfd.readouterr().err.count("RuntimeError: broken twice") == 1
