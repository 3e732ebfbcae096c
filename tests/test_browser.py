"""The viewer and the report in headless Chromium, beside our own rasterizer at the same camera."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import PROGRAM, Page, browser
from skimage.metrics import structural_similarity
from test_training_loop import CPU, tiny, toy
from test_viewer import app_for

from splatdistill import report
from splatdistill.config.load import dump
from splatdistill.config.schema import Config
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.scene.cameras import orbit
from splatdistill.scene.gaussians import init_blob, rgb_to_sh0
from splatdistill.training import loop
from splatdistill.training.monitor import Session
from splatdistill.training.state import new_state
from splatdistill.viewer.drawing import draw

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="needs chromium: apt-get install chromium"),
]


def scene():
    """Return a colored, lopsided thing: its views from other sides and upside down differ."""
    blob = init_blob(300, 0.6, opacity=0.9, color_noise=0.0, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        blob["means"].mul_(torch.tensor([0.6, 1.0, 0.4]))
        blob["means"][:, 2].add_(blob["means"][:, 1].clamp(min=0))
        blob["sh0"].copy_(rgb_to_sh0((blob["means"] + 0.5).clamp(0, 1))[:, None])
        blob["scales"][:, 0].add_(0.7)
    return blob


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """Return the one tab of a browser that all tests share."""
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(tab):
    tab.forget()
    yield tab
    assert not tab.errors
    assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:")) for url in tab.requests)


def open_viewer(page: Page, port: int) -> None:
    page.open(f"http://127.0.0.1:{port}/")
    page.until("document.body.textContent.includes('Gaussians')")
    page.evaluate("document.querySelectorAll('.mantine-Notification-root').forEach(e => e.remove())")


def canvas_of(page: Page, pixels: np.ndarray) -> np.ndarray:
    """Return the part of a screenshot that the canvas covers."""
    x, y, width, height = page.evaluate(
        """(() => {
            const it = document.querySelector("canvas"), box = it.getBoundingClientRect();
            return [box.x + it.clientLeft, box.y + it.clientTop, it.clientWidth, it.clientHeight];
        })()"""
    )
    x, y = round(x), round(y)
    return pixels[y : y + height, x : x + width]


def likeness(shown: np.ndarray, expected: np.ndarray) -> float:
    """SSIM of two pictures [H, W, 3] uint8."""
    found: Any = structural_similarity(shown, expected, channel_axis=2, data_range=255)
    return float(found)


def best_likeness(page: Page, expected: np.ndarray, enough: float, path: Path) -> float:
    """Return the likeness of the canvas once it is high enough, else of its last picture; saved as .png."""
    found = 0.0
    for _ in range(40):
        page.until("true")
        found = likeness(canvas_of(page, page.screenshot(path)), expected)
        if found >= enough:
            break
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return found


def test_both_ways_of_drawing_show_what_the_rasterizer_does(page, tmp_path):
    session = Session.showing(scene(), 0, 0)
    with app_for(session, live=False) as (app, port):
        open_viewer(page, port)
        height, width = canvas_of(page, page.screenshot()).shape[:2]
        expected = draw(scene(), orbit(0.0, 20.0, 3.0, 45.0, width, height))
        assert (width, height) == (1280 - 324, 720)
        assert best_likeness(page, expected, 0.98, tmp_path / "browser.png") >= 0.98
        app.panels.mode.value = "rasterizer"
        session.wake()
        assert best_likeness(page, expected, 0.98, tmp_path / "rasterizer.png") >= 0.98


@pytest.mark.slow
def test_keys_show_the_thing_from_around_and_the_reset_is_seen(page, tmp_path):
    with app_for(Session.showing(scene(), 0, 0), live=False) as (_, port):
        open_viewer(page, port)
        height, width = canvas_of(page, page.screenshot()).shape[:2]
        front, left = (draw(scene(), orbit(a, 20.0, 3.0, 45.0, width, height)) for a in (0.0, 90.0))
        assert best_likeness(page, front, 0.98, tmp_path / "front.png") >= 0.98
        page.press("3", "Digit3")
        assert best_likeness(page, left, 0.98, tmp_path / "left.png") >= 0.98
        page.click("View")
        page.click("Reset the view")
        assert best_likeness(page, front, 0.98, tmp_path / "again.png") >= 0.98
        page.press("7", "Digit7")
        page.press("r", "KeyR")
        assert best_likeness(page, front, 0.98, tmp_path / "last.png") >= 0.98


@pytest.mark.slow
def test_space_pauses(page):
    blob = scene()
    session = Session(lambda: blob, lambda z: z, 100)
    with app_for(session) as (_, port):
        open_viewer(page, port)
        page.press(" ", "Space")
        page.until("document.body.textContent.includes('paused')")
        assert session.status.paused
        page.until("document.querySelector('#splatdistill .frames').textContent.includes('frames/s')")


@pytest.mark.slow
def test_the_panel_fits_its_window(page, tmp_path):
    session = Session.showing(scene(), 0, 0)
    with app_for(session, live=False) as (_, port):
        open_viewer(page, port)
        for tab in ("View", "Path", "Export", "Help"):
            page.click(tab)
            page.screenshot(tmp_path / f"{tab}.png")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_pause_holds_the_steps_and_resume_lets_them_go_on(page, tmp_path):
    config = tiny("steps=100000", "checkpoint_every=100000")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    state = new_state(config, CPU)
    session = Session(lambda: state.gaussians, toy().decode, config.steps)

    def train() -> None:
        loop.train(config, toy(), state, tmp_path / "run", session)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        with app_for(session, tmp_path / "run") as (_, port):
            open_viewer(page, port)
            page.click("Pause")
            page.until("document.body.textContent.includes('paused')")
            page.screenshot(tmp_path / "paused.png")
            held = state.step
            page.click("View")  # something else meanwhile
            assert session.status.paused and state.step == held
            page.click("Single step")
            page.until(f"document.body.textContent.includes('{held + 1} / 100000')")
            assert state.step == held + 1
            page.click("Resume")
            page.until(f"!document.body.textContent.includes('{held + 1} / 100000')")
            assert state.step > held + 1
            page.click("Training")
            page.screenshot(tmp_path / "training.png")
            page.click("Stop and save")
            thread.join()
            assert (tmp_path / "run" / "checkpoints" / f"step-{state.step:08d}.pt").exists()
    finally:
        session.stop()
        thread.join()


@pytest.mark.slow
def test_the_loss_is_drawn_as_far_as_the_run_is(page):
    blob = scene()
    session = Session(lambda: blob, lambda z: z, 100)

    def learn(first: int, last: int) -> None:
        for step in range(first, last + 1):
            session.on_step(step, {"t": 500.0, "loss": 1.0 + step % 7, "gradient_norm": 1.0})
        session.wake()

    drawn = """(() => {
        const plot = document.querySelector(".uplot canvas");
        if (!plot || !plot.width) return false;
        const {width, height} = plot, {data} = plot.getContext("2d").getImageData(0, 0, width, height);
        let last = -1;
        for (let i = 0; i < data.length; i += 4)
            if (data[i + 3] > 200 && Math.abs(data[i] - 40) + Math.abs(data[i + 2] - 160) < 30)
                last = Math.max(last, i / 4 % width);
        return last / width;
    })()"""
    with app_for(session) as (_, port):
        open_viewer(page, port)
        learn(1, 30)
        page.until(f"{drawn} > 0.2 && {drawn} < 0.5")
        learn(31, 90)
        page.until(f"{drawn} > 0.7")


def test_the_download_is_the_file(page, tmp_path):
    from splatdistill.view import open_scenes
    from splatdistill.viewer import Address, serve

    write_ply(tmp_path / "ball.ply", scene(), {"prompt": "a ball"})
    scenes, prompt, method = open_scenes(tmp_path / "ball.ply")
    with serve(scenes, Address(port=0), prompt, method, live=False) as address:
        open_viewer(page, address.port)
        page.click("Download .ply")
        assert page.download() == (tmp_path / "ball.ply").read_bytes()
        page.click("View")
        page.click("Screenshot")
        assert page.download().startswith(b"\x89PNG")


def test_the_report_shows_the_splat_and_turns_it(page, tmp_path):
    config = Config(prompt="a ball")
    (tmp_path / "config.yaml").write_text(dump(config))
    write_ply(tmp_path / "splat.ply", scene())
    assert report.main([str(tmp_path)]) == 0
    page.open((tmp_path / "report.html").as_uri())
    page.until("Number(document.querySelector('canvas')?.dataset.drawn) > 0")
    shown = canvas_of(page, page.screenshot(tmp_path / "report.png"))
    height, width = shown.shape[:2]
    gaussians, look = read_ply(tmp_path / "splat.ply")[0], config.report

    def expected(azimuth: float, elevation: float) -> np.ndarray:
        return draw(gaussians, orbit(azimuth, elevation, look.distance, look.fov_deg, width, height))

    assert likeness(shown, expected(0.0, look.elevation_deg)) >= 0.98
    page.drag((300, 300), (400, 320))  # 100 to the right turns 1 radian, 20 down 0.2
    page.until("Number(document.querySelector('canvas').dataset.drawn) > 1")
    turned = expected(-np.degrees(1.0), look.elevation_deg + np.degrees(0.2))
    assert best_likeness(page, turned, 0.98, tmp_path / "turned.png") >= 0.98
    assert [url for url in page.requests if not url.startswith(("data:", "file:"))] == []
