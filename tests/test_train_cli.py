"""The command, end to end on a tiny random pipeline."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import SMALL, stop_after

from splatdistill.folder import CAPTURES, COMPARED, FILM, MASK, OUTPUTS, REFERENCE, SOURCE
from splatdistill.formats.ply import read_ply
from splatdistill.train import main, swept
from splatdistill.training import run
from splatdistill.training.inputs import slug

GIVEN = {REFERENCE, CAPTURES, SOURCE, MASK}  # what a run has only where it was given
pytestmark = pytest.mark.usefixtures("workplace", "loaded_once")


def command(teacher: str, *arguments: str) -> list[str]:
    """Return the words of a short run, by the method that costs least."""
    words = ["--prompt", "a red mushroom", "--prior", teacher, "--steps", "4", "--method", "sds"]
    return [*words, *arguments, *SMALL, "prior.dtype=float32"]


def mistake(capfd, *arguments: str) -> str:
    """Return the one line that a mistake prints; the status is 2."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    lines = capfd.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1, lines
    return lines[0]


def test_a_prompt_becomes_a_splat_and_its_companions(teacher, workplace, capfd):
    assert main(command(teacher, "--seed", "3", "--method", "sdi")) == 0
    assert "turned.ply --up -y" in capfd.readouterr().err
    out = workplace / "outputs" / "a-red-mushroom-3"
    assert {path.name for path in out.iterdir()} - {FILM} == set(OUTPUTS) - {FILM, *GIVEN, COMPARED}
    gaussians, comments = read_ply(out / "splat.ply")
    assert len(gaussians["means"]) > 0
    assert comments["prompt"] == "a red mushroom" and comments["seed"] == "3" and comments["method"] == "sdi"
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4


def test_the_written_configuration_repeats_the_run(teacher):
    assert main(command(teacher, "--out", "one", "--method", "csd")) == 0
    assert main(["--config", "one/config.yaml", "--out", "two"]) == 0
    assert Path("one/splat.ply").read_bytes() == Path("two/splat.ply").read_bytes()


def test_a_finished_run_is_kept_unless_told_otherwise(teacher, capfd):
    assert main(command(teacher, "--out", "run")) == 0
    before = Path("run/splat.ply").read_bytes()
    capfd.readouterr()
    assert "--overwrite" in mistake(capfd, *command(teacher, "--out", "run"))
    assert "there is no such folder" in mistake(capfd, *command("/absent", "--out", "run", "--overwrite"))
    assert Path("run/splat.ply").read_bytes() == before
    assert main(command(teacher, "--out", "run", "--overwrite", "--seed", "1")) == 0
    assert Path("run/splat.ply").read_bytes() != before


def test_a_stopped_run_resumes_to_the_same_bytes(teacher, capfd, monkeypatch):
    assert main(command(teacher, "--out", "whole")) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert main(command(teacher, "--out", "halves")) == 130
    assert "--resume halves" in capfd.readouterr().err
    assert "--resume" in mistake(capfd, *command(teacher, "--out", "halves"))
    assert main(["--resume", "halves"]) == 0
    assert Path("halves/splat.ply").read_bytes() == Path("whole/splat.ply").read_bytes()
    assert main(["--resume", "halves"]) == 0  # finished: the results are written again
    assert Path("halves/splat.ply").read_bytes() == Path("whole/splat.ply").read_bytes()


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(teacher, workplace, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        main(command(teacher, "--out", "run"))
    for path in (workplace / "run" / "checkpoints").iterdir():
        path.unlink()
    assert main(["--resume", "run"]) == 0


def test_damaged_checkpoints_are_one_clear_line(teacher, workplace, capfd, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        main(command(teacher, "--out", "run"))
    capfd.readouterr()
    for path in (workplace / "run" / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    assert "damaged" in mistake(capfd, "--resume", "run")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], "no prompt"),
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", " \t"], "prompt is empty"),
        (["--prompt", "a \udce9 duck"], "UTF-8"),
        (["--prompt", "a zebra"], "zebra"),
        (["--prompt", "a duck", "--bogus"], "--bogus"),
        (["--prompt", "a duck", "--steps", "ten"], "--steps"),
        (["--prompt", "a duck", "--steps", "-1"], "steps"),
        (["--prompt", "a duck", "--method", "sdx"], "sdx"),
        (["--prompt", "a duck", "--prior", "/absent"], "/absent"),
        (["--prompt", "a duck", "--device", "toaster"], "toaster"),
        (["--prompt", "a duck", "--device", "cuda:99"], "cuda:99"),
        (["--prompt", "a duck", "--config", "absent.yaml"], "absent.yaml"),
        (["--prompt", "a duck", "guidance.scael=3"], "guidance.scale"),
        (["--prompt", "a duck", "stray"], "stray"),
        (["--prompt", "a duck", "--viewer", "0.0.0.0:8080"], "--viewer-remote"),
        (["--prompt", "a duck", "--viewer", "guidance.scale=3"], "[HOST:]PORT"),
        (["--prompt", "a duck", "--viewer", "203.0.113.1:80", "--viewer-remote"], "no viewer at 203.0.113.1"),
        (["--resume", "absent"], "absent"),
        (["--resume", ".", "--seed", "3"], "drop --seed"),
        (["--prompt", "a duck", "--out", "/proc/none"], "cannot write"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capfd, arguments, expected):
    assert expected in mistake(capfd, *arguments)


def test_a_mistake_shows_no_traceback_from_the_shell(forks):
    code = "import runpy; runpy.run_module('splatdistill.train', run_name='__main__')"
    process = forks.run(code, "--prompt", "a zebra")
    assert process.returncode == 2 and process.stdout == ""
    assert re.fullmatch(r"error: .*zebra.*--list-words.*sd21.*\n", process.stderr)


def test_the_vocabulary_is_printed(capsys):
    assert main(["--list-words"]) == 0
    assert "mushroom" in capsys.readouterr().out


def test_folder_names_are_plain():
    assert slug("A red/../ mushroom's #1!") == "a-red-mushroom-s-1"
    names = [
        slug(text) for text in ("キノコ", "гриб", "a mushroom 🍄", "a mushroom", "a" * 61, "a" * 62, "", "!")
    ]
    assert len(set(names)) == len(names) and all(name.isascii() and len(name) < 80 for name in names)
    assert names[2].startswith("a-mushroom-") and names[0].startswith("splat-")


def draw_ball(path: Path) -> None:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(picture).ellipse((8, 8, 24, 24), fill="red")
    picture.save(path)


def test_a_picture_becomes_a_splat_and_stays_with_the_run(teacher, workplace, monkeypatch):
    draw_ball(workplace / "my mug.png")
    words = [*command(teacher, "--image", "my mug.png"), "--prompt", "a red mug"]
    assert main(words) == 0
    out = workplace / "outputs" / "a-red-mug-0"
    others = {FILM, COMPARED, *GIVEN - {REFERENCE}}
    assert {path.name for path in out.iterdir()} - {FILM} == set(OUTPUTS) - others
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert main([*words, "--out", "stopped"]) == 130
    (workplace / "my mug.png").unlink()  # the run has its own
    assert main(["--resume", "stopped"]) == 0
    assert Path("stopped/splat.ply").read_bytes() == (out / "splat.ply").read_bytes()


def test_a_picture_that_cannot_be_read_is_one_line(teacher, workplace, capfd):
    (workplace / "it.png").write_bytes(b"nothing")
    line = mistake(capfd, "--image", "it.png", "--prior", teacher, "--out", "run")
    assert "it.png" in line and "PNG" in line
    assert not (workplace / "run" / "config.yaml").exists()


def test_a_picture_alone_asks_for_a_teacher_that_reads_it(teacher, workplace, capfd):
    draw_ball(workplace / "it.png")
    line = mistake(capfd, "--image", "it.png", "--prior", teacher, "--out", "run")
    assert "--prompt" in line and "--prior" in line
    assert not (workplace / "run" / "config.yaml").exists()


def test_views_that_do_not_fill_the_groups_of_a_teacher_lose_nothing(teacher, workplace, capfd, monkeypatch):
    from splatdistill.priors.latent import LatentPrior

    words = ["--prompt", "a red mug", "--prior", teacher, "--steps", "2", *SMALL, "--out", "run"]
    assert main(words) == 0
    before = (workplace / "run" / "splat.ply").read_bytes()
    monkeypatch.setattr(LatentPrior, "group", 3)
    capfd.readouterr()
    line = mistake(capfd, *words, "--overwrite", "views.count=4")
    assert "views.count" in line and "3" in line
    assert (workplace / "run" / "splat.ply").read_bytes() == before


def test_seeds_make_a_run_each_and_one_picture_and_go_on_where_they_were(teacher, workplace, monkeypatch):
    from PIL import Image

    words = command(teacher, "--method", "dsd", "--seeds", "0,3-4", "--out", "set")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert main(words) == 130
    assert main(words) == 0
    splats = [Path("set", seed, "splat.ply") for seed in ("0", "3", "4")]
    assert len({path.read_bytes() for path in splats}) == 3
    assert Image.open("set/seeds.png").size == (2 * 4 * 96, 2 * 96)
    before = [path.stat().st_mtime_ns for path in splats]
    assert main(words) == 0
    assert [path.stat().st_mtime_ns for path in splats] == before
    assert main(command(teacher, "--method", "dsd", "--seed", "3", "--out", "alone")) == 0
    assert Path("alone/splat.ply").read_bytes() == splats[1].read_bytes()


def test_seeds_of_other_settings_are_not_mixed(teacher, workplace, capfd):
    assert main(command(teacher, "--seeds", "0", "--out", "set")) == 0
    capfd.readouterr()
    assert "holds a finished run" in mistake(
        capfd, *command(teacher, "--seeds", "0-1", "--out", "set", "guidance.scale=3")
    )
    assert "--seeds" in mistake(capfd, *command(teacher, "--seeds", "5-3"))
    assert "not both" in mistake(capfd, *command(teacher, "--seeds", "0", "--seed", "0"))


def test_an_unexpected_error_of_one_run_of_several_leaves_the_others(teacher, workplace, capfd, monkeypatch):
    def falls(config, *given, whole=run.make_run, **named):
        if config.seed != 1:
            return whole(config, *given, **named)
        raise RuntimeError("no memory")

    monkeypatch.setattr(run, "make_run", falls)
    assert main(command(teacher, "--seeds", "0-2", "--out", "set")) == 1
    assert sorted(path.parent.name for path in Path("set").glob("*/splat.ply")) == ["0", "2"]
    assert re.search("(?s)error: set/1: RuntimeError: no memory.*shows 2 runs", capfd.readouterr().err)


def test_a_viewer_changes_nothing(teacher, capfd):
    assert main(command(teacher, "--out", "alone")) == 0
    capfd.readouterr()
    assert main(command(teacher, "--out", "seen", "--viewer", "0")) == 0
    told = capfd.readouterr()
    assert "viewer: http://127.0.0.1:" in told.err and "ssh -L" in told.err and not told.out
    assert Path("seen/splat.ply").read_bytes() == Path("alone/splat.ply").read_bytes()


def test_a_run_keeps_scenes_over_its_course_and_the_last_two_states(teacher, workplace):
    assert main(command(teacher, "--out", "run", "--steps", "8")) == 0
    names = sorted(path.name for path in (workplace / "run" / "checkpoints").iterdir())
    scenes = [f"step-{step:08d}.ply" for step in (0, 2, 4, 6, 8)]
    assert names == sorted([*scenes, "step-00000006.pt", "step-00000008.pt"])


def test_a_viewer_that_fails_to_start_does_not_end_the_run(teacher, capfd, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr("splatdistill.viewer.serve", fail)
    assert main(command(teacher, "--out", "run", "--viewer", "0")) == 0
    assert "no viewer: broken" in capfd.readouterr().err and Path("run/splat.ply").exists()


def test_a_sweep_makes_a_run_for_each_value_and_one_page(teacher):
    words = command(
        teacher, "--out", "runs", "--sweep", "guidance.scale=3,5", "--seeds", "0,1", "--steps", "1"
    )
    assert main(words) == 0
    names = {f"guidance.scale={scale}_seed={seed}" for scale in (3, 5) for seed in (0, 1)}
    assert {path.name for path in Path("runs").iterdir() if path.is_dir()} == names
    page = (Path("runs") / "sweep.html").read_text("utf-8")
    assert page.count("<h2>") == 4 and '"guidance.scale%3D3_seed%3D0/report.html"' in page
    made = (Path("runs") / "guidance.scale=3_seed=0" / "splat.ply").stat().st_mtime_ns
    assert main([*words, "--seeds", "0", "--sweep", "views.count=2"]) == 0  # another sweep, other folders
    assert main(words) == 0  # nothing is made again
    assert (Path("runs") / "guidance.scale=3_seed=0" / "splat.ply").stat().st_mtime_ns == made


def test_commas_in_brackets_part_no_values_of_a_sweep():
    assert swept(["a=1,2", "b=[.98,.2],[.5,.2]"]) == [
        ["a=1", "b=[.98,.2]"],
        ["a=1", "b=[.5,.2]"],
        ["a=2", "b=[.98,.2]"],
        ["a=2", "b=[.5,.2]"],
    ]
    assert swept([]) == [[]]


@pytest.mark.parametrize("sweep", ["guidance.scale", "=3", "guidance.scale=", "guidance.scale=3,", "a=1,1"])
def test_what_is_no_sweep_is_one_line(teacher, capfd, sweep):
    assert "--sweep" in mistake(capfd, *command(teacher, "--out", "runs", "--sweep", sweep))
    assert not Path("runs").exists()


def test_a_mistake_in_the_last_value_of_a_sweep_is_told_before_the_first_is_made(teacher, capfd):
    assert "guidance" in mistake(capfd, *command(teacher, "--out", "runs", "--sweep", "guidance.scale=3,x"))
    assert not Path("runs").exists()


@pytest.mark.parametrize("word", ["views.size=100000", "gaussians.count=1000000000", "report.size=1000000"])
def test_a_size_that_cannot_fit_is_told_before_anything_is_made(teacher, capfd, word):
    words = [old for old in command(teacher, "--out", "run") if old.split("=")[0] != word.split("=")[0]]
    assert word.split("=")[0] in mistake(capfd, *words, word)
    assert not Path("run").exists()


def test_a_run_without_kernels_says_that_it_is_slow(teacher, capfd, monkeypatch):
    monkeypatch.setattr("splatdistill.ops.native._C", None)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        main(command(teacher, "--out", "run"))
    assert "20 times" in capfd.readouterr().err


def test_the_folder_of_no_name_is_refused(teacher, capfd):
    for option in ("--out", "--resume"):
        assert "empty" in mistake(capfd, "--prompt", "a duck", option, "")


def test_a_failed_command_leaves_no_folder(teacher, workplace, capfd):
    for words in (
        ["--prior", "/absent"],
        ["optimizer.beta1=1.5", "--prior", teacher],
        ["--device", "cuda:9"],
    ):
        mistake(capfd, "--prompt", "a red mushroom", "--steps", "1", *words)
        assert not list(workplace.iterdir())


def test_a_link_as_the_folder_stays(teacher, workplace, capfd):
    (workplace / "disk").mkdir()
    (workplace / "run").symlink_to("disk")
    (workplace / "dangling").symlink_to("nowhere")
    assert main(command(teacher, "--out", "run")) == 0
    assert (workplace / "run").is_symlink() and (workplace / "disk" / "splat.ply").exists()
    capfd.readouterr()
    mistake(capfd, *command(teacher, "--out", "dangling"))
    assert (workplace / "dangling").is_symlink() and not (workplace / "nowhere").exists()


def test_a_run_that_comes_to_nothing_is_one_line_and_status_1(teacher, capfd):
    assert main(command(teacher, "--out", "run", "guard.gradient_norm=1e-12")) == 1
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: every one of the 4 steps was bad")
    assert not Path("run/splat.ply").exists()


def test_nobody_has_to_be_at_the_terminal(teacher, monkeypatch):
    ending, other = os.pipe()
    os.close(ending)
    with open(other, "w") as gone, open("/dev/full", "w") as full:
        for name, stream in (("gone", gone), ("full", full)):
            monkeypatch.setattr(sys, "stderr", stream)
            assert main(command(teacher, "--out", name)) == 0
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    assert Path("gone/splat.ply").read_bytes() == Path("full/splat.ply").read_bytes()


def test_a_signal_saves_the_run_and_it_goes_on(teacher, monkeypatch, capfd, number):
    def signalled(self, step, metrics):
        if step == 3:
            signal.raise_signal(number)  # to this very thread: it is handled before the next line

    with monkeypatch.context() as patch:
        patch.setattr("splatdistill.training.progress.Lines.on_step", signalled)
        assert main(command(teacher, "--out", "run")) == 130
    assert "stopped after step 3 of 4; continue with --resume run" in capfd.readouterr().err
    assert main(["--resume", "run"]) == 0
    assert "continuing after step 3 of 4" in capfd.readouterr().err


def test_a_finished_run_goes_on_with_more_steps(teacher, capfd):
    assert main(command(teacher, "--out", "run")) == 0
    assert main(["--resume", "run", "--steps", "6"]) == 0
    assert "continuing after step 4 of 6" in capfd.readouterr().err
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 6
    assert "steps" in mistake(capfd, "--resume", "run", "--steps", "0")


def test_another_process_in_the_folder_is_one_line(teacher, capfd, monkeypatch):
    def meanwhile(self, step, metrics):
        if step == 2:
            assert main(command(teacher, "--out", "run", "--overwrite")) == 2
            assert main(["--resume", "run"]) == 2

    monkeypatch.setattr("splatdistill.training.progress.Lines.on_step", meanwhile)
    assert main(command(teacher, "--out", "run")) == 0
    assert capfd.readouterr().err.count("run is in use by another run") == 2


def test_the_vocabulary_is_cut_off_quietly(teacher):
    program = [sys.executable, "-m", "splatdistill.train", "--list-words"]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()
