"""The viewer with clients that speak its protocol, over the loopback interface; no browser."""

import random
import struct
import threading
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import zstandard
from test_training_loop import CPU, finish, tiny, toy
from test_viewer_server import CAMERA, PROTOCOL
from tiny import Hooks
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from splatdistill.errors import UserError
from splatdistill.formats.ply import write_ply
from splatdistill.scene.cameras import orbit
from splatdistill.scene.gaussians import from_tensors, init_blob
from splatdistill.training import loop
from splatdistill.training.monitor import Session
from splatdistill.training.state import new_state
from splatdistill.viewer.app import App
from splatdistill.viewer.drawing import CHANNELS, LARGEST, Pose, RenderOptions, draw, splats_for_client
from splatdistill.viewer.panels import RASTERIZER, summary
from splatdistill.viewer.path import VIEWS, Keyframe, along, film, place_of
from splatdistill.viewer.scenes import Scenes
from splatdistill.viewer.server import Address, start_server

WORDS = ["steps=12", "checkpoint_every=4", "gaussians.sh_degree=1", "gaussians.sh_every=2"]
GROWING = [
    "densification.kind=mcmc",
    "densification.start=1",
    "densification.every=2",
    "densification.cap_max=90",
]


def scene(count: int = 40):
    return init_blob(count, scale=0.1, opacity=0.9, generator=torch.Generator().manual_seed(0))


class Client:
    """A page without a browser: shows a camera, and keeps what kinds of messages it was sent."""

    def __init__(self, port: int) -> None:
        self._socket = connect(f"ws://127.0.0.1:{port}", subprotocols=[PROTOCOL], max_size=None)
        self.kinds: set[str] = set()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.send(msgspec.msgpack.encode(CAMERA))

    def send(self, content: bytes) -> None:
        self._socket.send(content)

    def _listen(self) -> None:
        try:
            for raw in self._socket:
                assert isinstance(raw, bytes)
                (length,) = struct.unpack_from("<Q", raw, 8)
                content = zstandard.ZstdDecompressor().decompress(raw[16 : 16 + length], 2**26)
                messages = msgspec.msgpack.decode(content)["messages"]
                with self._news:
                    self.kinds |= {message["type"] for message in messages}
                    self._news.notify_all()
        except ConnectionClosed:
            pass

    def wait_for(self, kind: str) -> None:
        with self._news:
            assert self._news.wait_for(lambda: kind in self.kinds, timeout=60), self.kinds

    def close(self) -> None:
        self._socket.close()
        self._thread.join()


@contextmanager
def app_for(session: Session, folder: Path | None = None, live: bool = True, settings=None):
    server, address = start_server(Address(port=0))
    app = App(server, Scenes(session, {}, None, folder), "a red ball", "sdi", live, settings)
    try:
        yield app, address.port
    finally:
        app.close()
        server.stop()


def wait_until_watched(session: Session, watched: bool) -> None:
    version = -1
    while session.watched != watched:
        version = session.wait(version, 60.0)


def train(config, out: Path, on_step=lambda step, metrics: None, session=None) -> bytes:
    (out / "checkpoints").mkdir(parents=True)
    state = new_state(config, CPU)
    if session is None:
        loop.train(config, toy(), state, out, Hooks(on_step=on_step))
        return finish(config, state, out)
    session._gaussians = lambda: state.gaussians

    def both(step, metrics) -> None:
        session.on_step(step, metrics)
        on_step(step, metrics)

    hooks = Hooks(on_step=both, should_stop=session.should_stop, on_views=session.on_views)
    loop.train(config, toy(), state, out, hooks)
    return finish(config, state, out)


@pytest.mark.parametrize("words", [[], GROWING], ids=["fixed", "growing"])
def test_a_watched_run_ends_in_the_same_bytes(tmp_path, words):
    config = tiny(*WORDS, *words)
    whole = train(config, tmp_path / "alone")
    ticks = iter(range(10**6))
    session = Session(scene, toy().decode, config.steps, clock=lambda: float(next(ticks)))
    with app_for(session, tmp_path / "seen") as (app, port):
        app.panels.mode.value = RASTERIZER
        app.panels.teacher.value = True
        clients = [Client(port) for _ in range(5)]
        wait_until_watched(session, True)
        session.watch(True, teacher_views=True)
        assert train(config, tmp_path / "seen", session=session) == whole
        assert session.snapshot is not None and session.teacher_view is not None
        clients[-1].wait_for("BackgroundImageMessage")
        for client in clients:
            client.close()
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("alone", "seen")]
    assert logs[0] == logs[1]


def test_clients_that_come_and_go_and_talk_nonsense_change_nothing(tmp_path, capfd):
    config = tiny(*WORDS, "steps=20")
    whole = train(config, tmp_path / "alone")
    session = Session(scene, toy().decode, config.steps)
    noise = random.Random(0)

    with app_for(session) as (_, port):
        babbler = Client(port)

        def on_step(step, metrics) -> None:
            guest = Client(port)
            wait_until_watched(session, True)
            guest.close()
            for _ in range(20):
                babbler.send(noise.randbytes(noise.randrange(1, 300)))
            babbler.send(
                msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": "?", "updates": {"value": 3}})
            )

        assert train(config, tmp_path / "seen", on_step, session) == whole
        babbler.close()
        wait_until_watched(session, False)
    assert len(capfd.readouterr().err.splitlines()) < 5


def test_pause_and_step_reach_the_trainer_and_a_stop_saves(tmp_path):
    config = tiny(*WORDS)
    session = Session(scene, toy().decode, config.steps)
    steps = []

    def on_step(step, metrics) -> None:
        steps.append(step)
        if step == 3:
            session.pause()
        if step == 4:
            session.stop()

    (tmp_path / "checkpoints").mkdir()
    state = new_state(config, CPU)
    session._gaussians = lambda: state.gaussians
    done = []

    def both(step, metrics) -> None:
        session.on_step(step, metrics)
        on_step(step, metrics)

    thread = threading.Thread(
        target=lambda: done.append(
            loop.train(
                config,
                toy(),
                state,
                tmp_path,
                Hooks(on_step=both, should_stop=session.should_stop, on_views=session.on_views),
            )
        )
    )
    thread.start()
    version = -1
    while not session.status.paused:
        version = session.wait(version, 1.0)
    session.single_step()
    thread.join()
    assert steps == [1, 2, 3, 4] and done == [False]
    assert (tmp_path / "checkpoints" / "step-00000004.pt").exists()


def test_a_finished_splat_is_sent_to_a_browser():
    with app_for(Session.showing(scene(), 0, 0), live=False) as (_, port):
        client = Client(port)
        client.wait_for("GaussianSplatsMessage")
        client.wait_for("BackgroundImageMessage")
        client.close()


def test_an_error_in_the_viewer_is_told_once_and_ends_nothing(capfd):
    with app_for(Session.showing(scene(), 0, 0), live=False) as (app, port):
        app.panels.format.value = ".nothing"

        def fail() -> None:
            raise RuntimeError("broken\ntwice")

        for _ in range(3):
            app._guard(fail)
        Client(port).wait_for("GaussianSplatsMessage")
    assert capfd.readouterr().err.count("RuntimeError: broken twice") == 1


def test_a_paused_run_hears_that_its_page_left():
    session = Session(scene, toy().decode, 10)
    with app_for(session) as (_, port):
        client = Client(port)
        wait_until_watched(session, True)
        session.pause()
        client.close()
        wait_until_watched(session, False)


def test_keys_and_the_reset_move_the_camera_of_who_used_them():
    session = Session(scene, toy().decode, 10)
    with app_for(session) as (app, port):
        commands = {handle.hotkey: uuid for uuid, handle in app._server.gui._command_handle_from_uuid.items()}
        assert set(commands) == {"space", "R", *"123456789"}
        client = Client(port)
        wait_until_watched(session, True)
        for send in (
            {"type": "CommandTriggerMessage", "uuid": commands["3"]},
            {"type": "GuiUpdateMessage", "uuid": app.panels.reset._impl.uuid, "updates": {"value": True}},
        ):
            client.kinds.clear()
            client.send(msgspec.msgpack.encode(send))
            client.wait_for("SetCameraPositionMessage")
        version = -1
        client.send(msgspec.msgpack.encode({"type": "CommandTriggerMessage", "uuid": commands["space"]}))
        while not session.status.paused:
            version = session.wait(version, 60.0)
        client.close()


def test_the_views_of_the_keys_are_around_the_thing():
    front, left, above = (place_of(*VIEWS[key]) for key in ("1", "3", "9"))
    assert front[0] > 2.5 and front[1] == 0 and abs(left[0]) < 1e-6 and left[1] > 2.5 and above[2] > 2.9
    assert all(np.linalg.norm(place) == pytest.approx(3.0) for place in (front, left, above))


def pose(aspect: float = 1.5, **changes) -> Pose:
    """Return the front view from a distance of 3."""
    values = {"wxyz": (0.5, -0.5, -0.5, 0.5), "position": (3.0, 0.0, 0.0), "fov_rad": 0.7, "aspect": aspect}
    return Pose(**(values | changes))


def test_a_browsers_camera_is_ours():
    expected = orbit(0.0, 0.0, 3.0, np.degrees(0.7), 60, 40)
    cameras = pose().cameras(40)
    assert (cameras.width, cameras.height) == (60, 40)
    assert torch.allclose(cameras.viewmats, expected.viewmats, atol=1e-6)
    assert torch.allclose(cameras.Ks, expected.Ks)


def test_pictures_never_grow_beyond_bounds():
    for aspect in (0.1, 1.0, 15.0):
        assert max(pose(aspect).size(10**9)) <= LARGEST + 1
    assert min(pose(15.0).size(0)) >= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"wxyz": (0.0, 0.0, 0.0, 0.0)},
        {"position": (float("nan"), 0.0, 0.0)},
        {"position": (1e9, 0.0, 0.0)},
        {"fov_rad": 0.0},
        {"fov_rad": 3.2},
        {"aspect": float("inf")},
    ],
)
def test_a_camera_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="no camera"):
        pose(**wrong)


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_channel_is_a_picture_with_the_thing_in_the_middle(channel):
    image = draw(scene(), pose().cameras(40), RenderOptions(channel=channel, background=(0.0, 0.0, 1.0)))
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    outside = (0, 0, 0) if channel == "alpha" else (0, 0, 255)
    assert tuple(image[0, 0]) == outside and tuple(image[20, 30]) != outside


def test_what_is_not_between_near_and_far_is_left_out():
    two = scene(2)
    with torch.no_grad():
        two["means"].copy_(torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]]))
    cameras = pose().cameras(40)
    near, far, none = (
        draw(two, cameras, RenderOptions(near=low, far=high))
        for low, high in ((2.0, 3.0), (3.0, 4.0), (5.0, 6.0))
    )
    assert (none == 255).all()
    assert (near != 255).any() and (far != 255).any() and (near != far).any()


def test_a_browser_is_sent_finite_gaussians_as_matrices():
    gaussians = scene(5)
    with torch.no_grad():
        gaussians["means"][2, 0] = float("nan")
        gaussians["quats"].mul_(3.0)
    means, covariances, rgb, opacities = splats_for_client(gaussians)
    assert means.shape == (4, 3) and rgb.shape == (4, 3) and opacities.shape == (4, 1)
    assert np.allclose(covariances, 0.01 * np.eye(3), atol=1e-6)  # round ones
    assert rgb.min() >= 0 and rgb.max() <= 1


def key(x: float, y: float = 0.0, z: float = 0.5) -> Keyframe:
    return Keyframe((x, y, z), (0.0, 0.0, 0.0), 0.7)


def test_a_path_goes_through_its_keyframes_without_a_jump():
    keys = [key(3.0), key(0.0, 3.0), key(-3.0, 0.0, 1.0)]
    assert [along(keys, share).position for share in (0.0, 0.5, 1.0)] == [k.position for k in keys]
    places = np.array([along(keys, share).position for share in np.linspace(0, 1, 101)])
    assert np.linalg.norm(np.diff(places, axis=0), axis=1).max() < 0.15
    assert along(keys[:1], 0.7) == keys[0]


def test_a_film_of_a_path_is_one_picture_after_another(monkeypatch):
    monkeypatch.setattr("splatdistill.media.films.find_ffmpeg", lambda: None)
    monkeypatch.setattr("splatdistill.viewer.path.find_ffmpeg", lambda: None)
    name, content = film(scene(), [key(3.0), key(0.0, 3.0)], (24, 16), 0.5, RenderOptions())
    assert name == "path.webp" and content[:4] == b"RIFF"


def test_exports_are_the_bytes_of_the_file_or_made_from_the_scene(tmp_path):
    write_ply(tmp_path / "splat.ply", scene(), {"prompt": "a ball"})
    (tmp_path / "checkpoints").mkdir()
    write_ply(tmp_path / "checkpoints" / "step-00000020.ply", scene(3))
    scenes = Scenes(Session.showing(scene(), 40, 40), {"prompt": "a ball"}, tmp_path / "splat.ply", tmp_path)
    assert scenes.export(None, ".ply") == (tmp_path / "splat.ply").read_bytes()
    (kept,) = scenes.kept()
    shown = scenes.get(kept)
    assert shown is not None and shown.step == 20 and len(shown.gaussians["means"]) == 3
    assert scenes.export(kept, ".ply") == kept.read_bytes()
    assert len(scenes.export(None, ".splat")) == 40 * 32 and len(scenes.export(kept, ".splat")) == 3 * 32
    live = Scenes(Session(scene, lambda z: z, 10), {}, tmp_path / "splat.ply", tmp_path)
    with pytest.raises(UserError, match="no scene yet"):
        live.export(None, ".ply")
    with pytest.raises(UserError, match="ending"):
        scenes.export(None, ".nothing")


def test_exports_can_be_turned_pruned_and_meshed():
    pytest.importorskip("fast_simplification")
    gaussians = scene()
    with torch.no_grad():
        gaussians["opacities"][:10] = -3.0
    scenes = Scenes(Session.showing(gaussians, 0, 0), {"prompt": "a ball"})
    assert len(scenes.export(None, ".splat", prune=0.5)) == 30 * 32
    assert scenes.export(None, ".ply", "-y") != scenes.export(None, ".ply")
    assert b"\nf " in scenes.export(None, ".obj", cells=32)
    assert b"KHR_gaussian_splatting" not in scenes.export(None, ".glb", cells=32)
    assert b"KHR_gaussian_splatting" in scenes.export(None, ".glb")
    with pytest.raises(UserError, match="no Gaussian"):
        scenes.export(None, ".ply", prune=0.95)


def test_texts_on_the_panel_are_text():
    page = summary("<script>alert(1)</script> a & b", {"<i>": "</div>"})
    assert "<script>" not in page and "<i>" not in page and "&lt;script&gt;" in page and "a &amp; b" in page


def test_snapshots_of_gaussians_keep_every_byte():
    original = scene()
    copy = from_tensors(**original)
    assert all(torch.equal(copy[name], original[name]) for name in original)
