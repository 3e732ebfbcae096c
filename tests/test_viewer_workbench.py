"""The tools of the page with a client that speaks its protocol; no browser."""

import json

import msgspec
import pytest
from test_viewer import Client, app_for, scene, wait_until_watched
from test_viewer_server import CAMERA
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from splatdistill.formats.ply import write_ply
from splatdistill.training.monitor import Session
from splatdistill.viewer import jobs
from splatdistill.viewer.app import App
from splatdistill.viewer.tools import BOX, EDIT
from splatdistill.viewer.workbench import Workbench


def bench_of(app: App) -> Workbench:
    assert app.bench is not None
    return app.bench


def picked(app: App) -> int:
    """Return how many Gaussians are picked."""
    chosen = bench_of(app).desk.chosen
    return 0 if chosen is None else int(chosen.sum())


def press(client: Client, uuid: str) -> None:
    client.send(msgspec.msgpack.encode({"type": "CommandTriggerMessage", "uuid": uuid}))


def use(client: Client, handle, value: object = True) -> None:
    update = {"type": "GuiUpdateMessage", "uuid": handle._impl.uuid, "updates": {"value": value}}
    client.send(msgspec.msgpack.encode(update))


def count(session: Session) -> int:
    assert session.snapshot is not None
    return len(session.snapshot.gaussians["means"])


def until(session: Session, condition) -> None:
    version = -1
    for _ in range(600):
        if condition():
            return
        version = session.wait(version, 0.1)
    raise AssertionError("gave up waiting")


def test_the_pages_socket_and_the_controls_change_one_scene(capfd):
    session = Session.showing(scene(), 0, 0)
    with app_for(session, live=False, settings=()) as (app, port):
        bench, commands = bench_of(app), app._server.gui._command_handle_from_uuid
        keys = {handle.hotkey: uuid for uuid, handle in commands.items()}
        assert set(keys) >= {"B", "P", "V", "X", "Z"}
        client = Client(port)
        wait_until_watched(session, True)
        client.wait_for("RunJavascriptMessage")
        (ticket,) = bench.pages._tickets
        with connect(f"ws://127.0.0.1:{port}/page/{ticket}") as page:
            assert json.loads(page.recv(timeout=60))["tool"] == "look"
            press(client, keys["B"])
            while (told := json.loads(page.recv(timeout=60)))["tool"] != "box":
                pass
            assert told["split"] is None and bench.tools.mouse.value == BOX
            turned = {"wxyz": (0.5, -0.5, -0.5, 0.5)}  # toward the scene
            client.send(msgspec.msgpack.encode(CAMERA | turned))
            handle = next(iter(app._server.get_clients().values()))
            until(session, lambda: tuple(handle.camera.wxyz) == turned["wxyz"])
            page.send('{"kind": "box", "points": [[0, 0], [0.5, 1]], "how": "replace"}')
            until(session, lambda: bench.desk.chosen is not None)
            left = picked(app)
            assert 0 < left < 40
            press(client, keys["X"])
            until(session, lambda: count(session) == 40 - left)
            use(client, bench.tools.compare)
            while json.loads(page.recv(timeout=60))["split"] != 0.5:
                pass
            page.send('{"kind": "split", "share": 0.75}')
            while json.loads(page.recv(timeout=60))["split"] != 0.75:
                pass
            press(client, keys["Z"])
            until(session, lambda: count(session) == 40)
        client.close()
    assert not capfd.readouterr().err


def test_a_run_takes_the_texts_of_the_page(monkeypatch):
    def changed(config, out, watch):
        asked.append((config.prompt, config.edit.source_prompt, config.method.name))
        return scene(7)

    asked = []
    monkeypatch.setattr(jobs, "changed", changed)
    session = Session.showing(scene(), 0, 0)
    with app_for(session, live=False, settings=()) as (app, port):
        tools, client = bench_of(app).tools, Client(port)
        wait_until_watched(session, True)
        for handle, value in ((tools.verb, EDIT), (tools.now, "a car"), (tools.wanted, "a blue car")):
            use(client, handle, value)
        use(client, tools.run)
        until(session, lambda: count(session) == 7)
        assert asked == [("a blue car", "a car", "pds")] and bench_of(app).desk.undoes == "edit"
        until(session, lambda: not bench_of(app).jobs.busy)
        use(client, tools.undo)
        until(session, lambda: count(session) == 40)
        use(client, tools.masked, True)
        use(client, tools.run)  # of nothing
        client.wait_for("NotificationShowMessage")
        use(client, tools.now, "x" * 10_000)
        client.close()
    assert len(asked) == 1


def test_an_earlier_scene_of_a_run_is_not_changed_by_what_is_done_to_the_newest(tmp_path):
    session = Session.showing(scene(), 40, 40)
    (tmp_path / "checkpoints").mkdir()
    write_ply(tmp_path / "checkpoints" / "step-00000020.ply", scene(9))
    with app_for(session, tmp_path, live=False, settings=()) as (app, port):
        client = Client(port)
        wait_until_watched(session, True)
        until(session, lambda: app.panels.scene.max == 1)
        app.panels.scene.value = 0
        until(session, lambda: not bench_of(app).newest)
        use(client, bench_of(app).tools.invert)
        client.wait_for("NotificationShowMessage")
        assert picked(app) == 0
        app.panels.scene.value = 1
        until(session, lambda: bench_of(app).newest)
        use(client, bench_of(app).tools.invert)
        until(session, lambda: picked(app) == 40)
        client.close()


def test_a_page_that_other_machines_reach_or_that_trains_has_no_tools():
    with app_for(Session.showing(scene(), 0, 0), live=False) as (app, port):
        assert app.bench is None
        client = Client(port)
        client.wait_for("GaussianSplatsMessage")
        client.wait_for("RunJavascriptMessage")  # it counts frames
        for path in ("/page/", "/page/null"):
            with pytest.raises(InvalidStatus, match="403"):
                connect(f"ws://127.0.0.1:{port}{path}")
        client.close()
