"""What can be done to a splat in the page, in headless Chromium."""

import numpy as np
import pytest
import torch
from browser import PROGRAM
from test_browser import best_likeness, canvas_of, open_viewer, page, scene, tab  # noqa: F401 - fixtures
from test_viewer import app_for
from test_viewer_workbench import bench_of, picked

from splatdistill.formats.spz import write_spz
from splatdistill.scene.cameras import orbit
from splatdistill.scene.gaussians import init_blob, select
from splatdistill.training.monitor import Session
from splatdistill.viewer import jobs
from splatdistill.viewer.drawing import draw

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="needs chromium: apt-get install chromium"),
]
SAYS = "document.body.textContent.includes"
READY = "window.splatdistill && document.querySelector('#splatdistill .frames').textContent"


def shown(page, app) -> int:  # noqa: F811
    """Return how many Gaussians the page says there are."""
    return int(page.evaluate("document.body.textContent.match(/Gaussians([0-9,]+)/)[1]").replace(",", ""))


@pytest.mark.slow
def test_a_box_chooses_and_what_is_chosen_is_deleted_and_comes_back(page, tmp_path):  # noqa: F811
    with app_for(Session.showing(scene(), 0, 0), live=False, settings=()) as (app, port):
        open_viewer(page, port)
        page.until(READY)
        page.screenshot(tmp_path / "tools.png")
        page.press("b", "KeyB")
        page.until("window.splatdistill.state.tool === 'box'")
        page.click("Pick")
        page.drag((100, 100), (478, 700))  # the left half
        page.until(f"{SAYS}('of 300 Gaussians are picked')")
        page.screenshot(tmp_path / "box.png")
        left = picked(app)
        chosen = bench_of(app).desk.chosen
        assert 100 < left < 200 and chosen is not None
        assert (chosen == (scene()["means"][:, 1] < 0)).float().mean() > 0.9
        page.drag((500, 100), (900, 700), modifiers=8)
        page.until(f"{SAYS}('of 300 Gaussians are picked') && !{SAYS}('{left} of 300')")
        assert picked(app) > left
        page.drag((500, 100), (900, 700), modifiers=1)
        page.until(f"{SAYS}('{left} of 300 Gaussians are picked')")
        page.click("Delete")
        page.until(f"{SAYS}('Gaussians{300 - left}')")
        height, width = canvas_of(page, page.screenshot()).shape[:2]
        rest = draw(select(scene(), scene()["means"][:, 1] >= 0), orbit(0.0, 20.0, 3.0, 45.0, width, height))
        assert best_likeness(page, rest, 0.95, tmp_path / "deleted.png") >= 0.95
        page.click("Edit")
        page.screenshot(tmp_path / "change.png")
        page.click("Undo: delete")
        page.until(f"{SAYS}('Gaussians300')")
        whole = draw(scene(), orbit(0.0, 20.0, 3.0, 45.0, width, height))
        assert best_likeness(page, whole, 0.98, tmp_path / "undone.png") >= 0.98


@pytest.mark.slow
def test_a_brush_paints_what_it_passes_and_all_else_is_cropped(page, tmp_path):  # noqa: F811
    with app_for(Session.showing(scene(), 0, 0), live=False, settings=()) as (app, port):
        open_viewer(page, port)
        page.until(READY)
        page.press("p", "KeyP")
        page.until("window.splatdistill.state.tool === 'stroke'")
        page.click("Pick")
        page.drag((380, 330), (580, 330))
        page.until(f"{SAYS}('of 300 Gaussians are picked')")
        page.screenshot(tmp_path / "brush.png")
        painted = picked(app)
        page.drag((380, 420), (580, 420))  # paints on
        page.until(f"{SAYS}('of 300 Gaussians are picked') && !{SAYS}('{painted} of 300')")
        kept = picked(app)
        assert kept > painted
        page.click("Delete the rest")
        page.until(f"{SAYS}('Gaussians{kept}')")
        page.screenshot(tmp_path / "cropped.png")
        page.press("v", "KeyV")
        page.until("window.splatdistill.state.tool === 'look'")


@pytest.mark.slow
def test_a_dropped_file_is_opened_and_another_is_told_why_not(page, tmp_path):  # noqa: F811
    far = init_blob(500, scale=2.0, opacity=0.9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        far["means"].mul_(20.0).add_(100.0)
    write_spz(tmp_path / "far off.spz", far)
    (tmp_path / "bad.ply").write_bytes(b"ply\nnothing")
    (tmp_path / "notes.txt").write_text("hello")
    with app_for(Session.showing(scene(), 0, 0), live=False, settings=()) as (_, port):
        open_viewer(page, port)
        page.until(READY)
        page.drop(tmp_path / "far off.spz")
        page.until(f"{SAYS}('Gaussians500') && {SAYS}('far off.spz')")
        seen = 0.0
        for _ in range(40):  # until it is in sight
            page.until("true")
            middle = canvas_of(page, page.screenshot(tmp_path / "opened.png"))[300:420, 400:560]
            if (seen := float(np.mean(middle < 200))) > 0.5:
                break
        assert seen > 0.5
        page.drop(tmp_path / "bad.ply")
        page.until(f"{SAYS}('That did not work')")
        page.screenshot(tmp_path / "bad.png")
        page.drop(tmp_path / "notes.txt")
        page.until("!document.querySelector('#splatdistill .drop').hidden")
        assert "expected a file that ends in" in page.evaluate("document.querySelector('.drop').textContent")
        page.screenshot(tmp_path / "refused.png")
        page.click("Edit")
        page.click("Undo: open")
        page.until(f"{SAYS}('Gaussians300')")


@pytest.mark.slow
def test_a_run_changes_the_scene_and_the_line_divides_before_and_after(page, tmp_path, monkeypatch):  # noqa: F811
    def changed(config, out, watch):
        assert config.prompt == "a red ball"
        made = scene()
        with torch.no_grad():
            made["sh0"].neg_()
        return made

    monkeypatch.setattr(jobs, "changed", changed)
    session = Session.showing(scene(), 0, 0)
    with app_for(session, live=False, settings=()) as (app, port):
        bench_of(app).tools.now.value = "a red ball"
        open_viewer(page, port)
        page.until(READY)
        page.click("Edit")
        page.click("Run")
        page.until(f"{SAYS}('Undo: refine')")
        page.screenshot(tmp_path / "refined.png")
        bench_of(app).tools.compare.value = True
        session.wake()
        page.until("!document.querySelector('#splatdistill .line').hidden")
        height, width = canvas_of(page, page.screenshot()).shape[:2]
        after = session.snapshot
        assert after is not None
        old, new = (draw(s, orbit(0.0, 20.0, 3.0, 45.0, width, height)) for s in (scene(), after.gaussians))
        page.drag((478, 360), (600, 360))
        page.until("window.splatdistill.state.split > 0.6")
        edge = round(page.evaluate("window.splatdistill.state.split") * width)
        expected = np.concatenate([old[:, :edge], new[:, edge:]], 1)
        assert best_likeness(page, expected, 0.95, tmp_path / "split.png") >= 0.95


@pytest.mark.slow
def test_what_a_mesh_may_have_is_offered_with_the_formats(page, tmp_path):  # noqa: F811
    with app_for(Session.showing(scene(), 0, 0), live=False, settings=()) as (app, port):
        app.panels.format.value = "mesh .glb"
        open_viewer(page, port)
        page.click("Export")
        page.until(f"{SAYS}('Triangles') && {SAYS}('Cells') && {SAYS}('Prune') && {SAYS}('Up')")
        page.screenshot(tmp_path / "export.png")
        page.click("Help")
        page.until(f"{SAYS}('drop a file')")
        page.screenshot(tmp_path / "help.png")
