"""What trainer and viewer tell each other, without either."""

import threading
from typing import Any

import pytest
import torch

from splatdistill.guidance.core import Distillation
from splatdistill.scene.gaussians import NAMES, init_blob
from splatdistill.scene.rendering import Render
from splatdistill.training.monitor import GONE, INTERVAL, Session

METRICS = {"t": 500.0, "loss": 2.0, "gradient_norm": 1.0, "gaussians": 5, "skipped": 0}


class Clock:
    """A time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def scene():
    return init_blob(5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def session(clock, scene):
    return Session(lambda: scene, lambda z: z[:, :3], steps=10, clock=clock)


def views() -> tuple[Render, Distillation]:
    image, z = torch.rand(2, 4, 4, 3), torch.rand(2, 4, 2, 2)
    distillation = Distillation(torch.zeros(()), z, z, z, z, z)
    return Render(image, image[..., :1], image[..., :1], {}), distillation


def test_nothing_is_copied_while_no_one_looks(session):
    session.on_views(*views())
    session.on_step(1, METRICS)
    assert session.snapshot is None and session.teacher_view is None
    assert session.status.step == 1 and session.status.metrics == METRICS


def test_a_snapshot_is_a_copy_that_later_steps_leave_alone(session, scene):
    session.watch(True)
    session.on_step(1, METRICS)
    before = {name: scene[name].detach().clone() for name in NAMES}
    with torch.no_grad():
        for value in scene.values():
            value.zero_()
    snapshot = session.snapshot
    assert snapshot.step == 1
    assert all(torch.equal(snapshot.gaussians[name], before[name]) for name in NAMES)
    assert not any(value.requires_grad for value in snapshot.gaussians.values())


def test_snapshots_keep_their_distance(session, clock):
    session.watch(True)
    session.on_step(1, METRICS)
    clock.now = 0.9 * INTERVAL
    session.on_step(2, METRICS)
    assert session.snapshot.step == 1
    clock.now = INTERVAL
    session.on_step(3, METRICS)
    assert session.snapshot.step == 3


def test_teacher_views_are_taken_only_when_wanted(session):
    session.watch(True, teacher_views=False)
    session.on_views(*views())
    assert session.teacher_view is None
    session.watch(True, teacher_views=True)
    view, distillation = views()
    session.on_views(view, distillation)
    teacher_view: Any = session.teacher_view
    assert teacher_view.view.shape == (4, 4, 3) and teacher_view.x0_hat.shape == teacher_view.noise.shape == (
        2,
        2,
        3,
    )
    assert (teacher_view.view == view.rgb[0].mul(255).round().byte().numpy()).all()


def test_taking_part_draws_no_random_number(session):
    session.watch(True, teacher_views=True)
    before = torch.get_rng_state()
    pair = views()
    torch.set_rng_state(before)
    session.on_views(*pair)
    session.on_step(1, METRICS)
    session.should_stop()
    assert torch.equal(torch.get_rng_state(), before)


def test_speed_leaves_pauses_out(session, clock):
    for step in range(1, 4):
        clock.now += 0.5
        session.on_step(step, METRICS)
        clock.now += 100.0  # a pause
        session.should_stop()
    assert session.status.speed == pytest.approx(2.0)


def in_thread(call):
    """Start a call elsewhere; its thread and the list that its result will be in."""
    result = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    return thread, result


def test_a_paused_run_waits_until_it_is_resumed(session):
    session.pause()
    thread, result = in_thread(session.should_stop)
    assert thread.is_alive() and session.status.paused
    session.resume()
    thread.join()
    assert result == [False] and not session.status.paused


def test_a_single_step_is_one_step(session):
    session.single_step()
    assert session.should_stop() is False  # the step
    thread, result = in_thread(session.should_stop)
    assert session.status.paused and thread.is_alive()
    session.stop()
    thread.join()
    assert result == [True]


def test_an_interrupt_ends_the_waiting_of_a_paused_run(session):
    session.pause()
    assert session.should_stop(lambda: True) is True


def test_a_paused_run_shows_its_last_step(session, clock):
    session.watch(True)
    session.on_step(1, METRICS)
    clock.now = 0.1
    session.on_step(2, METRICS)
    session.single_step()
    session.pause()
    session.should_stop()
    thread, _ = in_thread(session.should_stop)
    version = session.wait(-1, 0.0)
    while session.snapshot.step != 2:
        version = session.wait(version, 10.0)
    session.stop()
    thread.join()


def test_a_finished_session_is_not_paused_any_more(session, scene):
    session.pause()
    session.finish(scene)
    session.pause()
    session.single_step()
    assert session.status.finished and not session.status.paused
    assert session.should_stop() is False


def test_the_result_stays_until_everyone_left(session, scene):
    session.watch(True)
    session.finish(scene)
    thread, _ = in_thread(lambda: session.wait_until_left(lambda: False))
    session.watch(False)
    thread.join()
    session.watch(True)
    session.wait_until_left(lambda: True)  # or until Ctrl-C


def test_a_scene_that_no_one_trains_is_there_at_once(scene):
    session = Session.showing(scene, 7, 9)
    status = session.status
    assert status.finished and (status.step, status.steps) == (7, 9)
    assert session.snapshot is not None and session.snapshot.step == 7


def test_commands_from_many_threads_leave_a_session_that_works(session):
    calls = [session.pause, session.resume, session.single_step, session.wake, session.history]
    threads = [threading.Thread(target=call) for call in calls * 20]
    for thread in threads:
        thread.start()
    for step in range(1, 50):
        session.on_step(step, METRICS)
    for thread in threads:
        thread.join()
    session.resume()
    assert session.should_stop() is False
    assert [step for step, _, _ in session.history()] == list(range(1, 50))


def test_a_paused_run_says_so_and_goes_on_when_the_last_page_has_left(clock, scene):
    told: list[str] = []
    session = Session(lambda: scene, lambda z: z, 10, clock=clock, tell=told.append)
    session.watch(True)
    session.pause()
    asked = iter(range(4))

    def passing() -> bool:  # what a paused run asks while it waits
        moment = next(asked, 4)
        if moment == 0:
            session.watch(False)  # the page is loaded anew
        elif moment == 1:
            clock.now += 0.9 * GONE
            session.watch(True)
            assert told == ["paused in the viewer after step 0, until resumed there or its page is closed"]
        elif moment == 2:
            clock.now += 10 * GONE
            session.watch(False)
        elif moment == 3:
            clock.now += 1.1 * GONE
        return False

    assert session.should_stop(passing) is False
    assert not session.status.paused and told[1:] == ["the last page of the viewer left; the run goes on"]
