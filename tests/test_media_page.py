"""The page of a run: whole, harmless, and closed to the network."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from test_report import finished, scene

from splatdistill.media import page as page_module
from splatdistill.media.run_report import write_report
from splatdistill.scene import gaussians as G
from splatdistill.viewer.drawing import splats_for_client

HOSTILE = "</script><script>alert(1)</script> \" onload='x' <!-- & https://evil.example ${x} \u2028"
VOID = {"meta", "img", "line", "polyline", "br"}


class Page(HTMLParser):
    """The elements of a page, with its texts by the element around them; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open:
            self.texts.append((self._open[-1], data))

    def text_of(self, tag: str) -> str:
        return "".join(text for around, text in self.texts if around == tag)


@pytest.fixture
def page(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr("splatdistill.media.films.find_ffmpeg", lambda: None)
    write_report(scene(), tmp_path, finished(tmp_path, HOSTILE))
    return Path(tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_asks_no_host_for_anything(page):
    parsed = Page(page)
    sources = [
        v or "" for _, a in parsed.tags for k, v in a.items() if k in ("src", "href", "srcset", "action")
    ]
    assert len(sources) == 2 and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"(https?:)?//", page_module.asset("style.css"))
    script = re.sub(r"^\s*//.*$", "", page_module.asset("viewer.js"), flags=re.M)
    assert not re.search(r"https?:|fetch|XMLHttp|WebSocket|import\(", script)


def test_its_policy_admits_its_own_script_and_style_and_nothing_else(page):
    parsed = Page(page)
    (policy,) = [a["content"] for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    script, style = page_module.asset("viewer.js"), page_module.asset("style.css")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    assert page_module.digest(script) in policy and page_module.digest(style) in policy
    assert "unsafe" not in policy
    assert f"<script>{script}</script>" in page and f"<style>{style}</style>" in page
    assert not any(name.startswith("on") or name == "style" for _, a in parsed.tags for name in a)


def test_hostile_texts_stay_texts(page):
    parsed = Page(page)
    assert parsed.text_of("h1") == parsed.text_of("title") == HOSTILE
    assert [a for t, a in parsed.tags if t == "script"] == [
        {"type": "application/json", "id": "settings"},
        {"type": "text/plain", "id": "splats"},
        {},
    ]


def test_the_page_shows_settings_and_the_plots_that_have_values(page):
    parsed = Page(page)
    assert "steps: 4" in parsed.text_of("pre")
    plots = [a["aria-label"] for t, a in parsed.tags if t == "svg"]
    assert plots == ["loss over steps", "timestep t over steps", "Gaussians over steps"]  # no norm was finite


def test_the_splats_in_the_page_are_those_of_the_scene():
    gaussians = scene()
    content, left_out = page_module.pack_splats(gaussians)
    rows = np.frombuffer(content, "<f4", 27).reshape(3, 9)
    rgba = np.frombuffer(content, np.uint8, 12, 27 * 4).reshape(3, 4)
    assert left_out == 0 and len(content) == 3 * 40
    assert np.array_equal(rows[:, :3], gaussians["means"].detach().numpy())
    assert np.allclose(rows[:, 3:], [[0.0144, 0, 0, 0.0144, 0, 0.0144]] * 3, atol=1e-6)
    assert (rgba == np.array([[255, 0, 0, 252], [0, 255, 0, 252], [0, 0, 255, 252]])).all()


@pytest.mark.parametrize("log_scale", [46.0, 90.0, 3e38])
def test_sizes_beyond_what_squares_hold_stay_finite(log_scale):
    gaussians = scene()
    with torch.no_grad():
        gaussians["scales"][1] = log_scale
    content, left_out = page_module.pack_splats(gaussians)
    assert left_out == 0 and np.isfinite(np.frombuffer(content, "<f4", 27)).all()
    assert np.isfinite(splats_for_client(gaussians)[1]).all()


def test_a_large_scene_is_cut_to_what_counts_most(monkeypatch):
    monkeypatch.setattr(page_module, "MOST_SPLATS", 2)
    gaussians = scene()
    with torch.no_grad():
        gaussians["opacities"][1] = -3.0
    content, left_out = page_module.pack_splats(gaussians)
    kept = np.frombuffer(content, "<f4", 18).reshape(2, 9)[:, :3]
    assert left_out == 1 and np.array_equal(kept, gaussians["means"].detach().numpy()[[0, 2]])


def test_a_page_of_sixty_thousand_splats_stays_below_five_megabytes():
    big = G.init_blob(page_module.MOST_SPLATS + 10, generator=torch.Generator().manual_seed(0))
    content, left_out = page_module.pack_splats(big)
    assert left_out == 10 and len(base64.b64encode(content)) < 3.3e6


@pytest.mark.parametrize("low, high", [(0, 250), (0.013, 0.02), (-3, 4), (1e-7, 1e9), (1999, 2001)])
def test_ticks_are_few_and_enclose_the_range(low, high):
    marks = page_module.ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high and 3 <= len(marks) <= 7
