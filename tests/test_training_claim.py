"""Who may write to the folder of a run, and what becomes of an older run and of strangers' files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from splatdistill.config.load import dump
from splatdistill.config.schema import Config
from splatdistill.errors import UserError
from splatdistill.folder import CONFIG, OUTPUTS, PREVIOUS, RESULT
from splatdistill.training import claim


def make_folder(folder: Path, *names: str) -> Path:
    """Return a run's folder with files that hold their own names."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in names:
        (folder / name).write_text(name)
    (folder / CONFIG).write_text(dump(Config(prompt="a red dog")))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FINISHED = (RESULT, "preview.png", "checkpoints/step-00000004.pt", "checkpoints/step-00000004.ply")


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name not in ("checkpoints", CONFIG)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_strangers_file_of_a_runs_name_is_refused(tmp_path, name, overwrite):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=name):
        claim.check_folder(tmp_path, overwrite=overwrite, resume=False)


@pytest.mark.parametrize("text", ["", "a: 1", "- prompt", "prompt: x", "\x00", "[" * 900, "&a [*a]"])
def test_a_config_of_something_else_makes_no_run(tmp_path, text):
    (tmp_path / CONFIG).write_text(text)
    assert not claim.is_run(tmp_path)
    with pytest.raises(UserError, match=r"config\.yaml"):
        claim.check_folder(tmp_path, overwrite=True, resume=False)


def test_strangers_files_of_other_names_are_no_hindrance_and_stay(tmp_path):
    run = make_folder(tmp_path / "run", *FINISHED)
    for name in ("notes.txt", "checkpoints/best.pt", "checkpoints/step-final.ply", "log.txt"):
        (run / name).write_text("mine")
    claim.check_folder(run, overwrite=True, resume=False)
    claim.set_aside(run)
    claim.drop_previous(run)
    assert set(content(run)) == {
        "notes.txt",
        "log.txt",
        "checkpoints/best.pt",
        "checkpoints/step-final.ply",
    }


def test_a_run_that_is_set_aside_comes_back_whole(tmp_path):
    run = make_folder(tmp_path / "run", *FINISHED)
    before = content(run)
    claim.set_aside(run)
    assert content(run / PREVIOUS) == before and not claim.is_run(run)
    make_folder(tmp_path / "new", "metrics.jsonl")
    claim.move_run(tmp_path / "new", run)
    claim.bring_back(run)
    assert content(run) == before and not (run / PREVIOUS).exists()


@pytest.mark.parametrize("moment", range(8))
def test_a_kill_while_a_run_is_set_aside_loses_no_file(tmp_path, moment, monkeypatch):
    run = make_folder(tmp_path / "run", *FINISHED)
    before = content(run)
    calls = iter(range(100))

    def counted(original):
        def call(*args, **kwargs):
            if next(calls) == moment:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(claim.shutil, "move", counted(claim.shutil.move))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        try:
            claim.set_aside(run)
        except KeyboardInterrupt:
            assert claim.is_run(run)
    both = content(run)
    for name, value in before.items():
        assert value in (both.get(name), both.get(f"{PREVIOUS}/{name}"))
    claim.check_folder(run, overwrite=True, resume=False)
    claim.set_aside(run)
    assert (run / PREVIOUS / RESULT).read_text() == RESULT


def test_an_unfinished_run_never_takes_the_place_of_a_finished_one(tmp_path):
    run = make_folder(tmp_path / "run", *FINISHED)
    claim.set_aside(run)
    make_folder(tmp_path / "new", "metrics.jsonl")
    claim.move_run(tmp_path / "new", run)
    claim.set_aside(run)
    assert (run / PREVIOUS / RESULT).exists() and not claim.own_files(run)


def test_what_killed_writes_left_goes_with_the_run(tmp_path):
    run = make_folder(tmp_path / "run", *FINISHED)
    for name in (".splat.ply.tmp", "checkpoints/.step-00000006.pt.tmp"):
        (run / name).write_text("half")
    (run / ".other.tmp").write_text("mine")
    assert {path.name for path in claim.leftovers(run)} == {".splat.ply.tmp", ".step-00000006.pt.tmp"}
    claim.drop_run(run)
    assert set(content(run)) == {".other.tmp"}


HOLD = """
import sys
from pathlib import Path
from splatdistill.training.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(out)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None and other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="in use by another run"), claim.claimed(out):
        pass
    assert out.is_dir()
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with claim.claimed(out):
        pass


def test_folders_that_stay_empty_go_again(tmp_path):
    with pytest.raises(UserError), claim.claimed(tmp_path / "a" / "b"):
        raise UserError("nothing came of it")
    assert not list(tmp_path.iterdir())
    with claim.claimed(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()


def test_a_link_to_a_folder_is_that_folder_and_stays(tmp_path):
    make_folder(tmp_path / "run", *FINISHED)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match="finished run"):
        claim.check_folder(link, overwrite=False, resume=False)
    claim.set_aside(link)
    assert link.is_symlink() and (tmp_path / "run" / PREVIOUS / RESULT).exists()


@pytest.mark.parametrize("name", ["file", "dangling", "a" * 300, "file/below"])
def test_what_can_be_no_folder_is_one_line(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    out = tmp_path / name
    with pytest.raises(UserError) as caught:
        claim.check_folder(out, overwrite=True, resume=False)
        with claim.claimed(out):
            pass
    assert "\n" not in str(caught.value) and os.path.lexists(tmp_path / "dangling")
    assert not (tmp_path / "nowhere").exists()


def test_what_a_killed_removal_of_the_previous_run_leaves_is_in_nobodys_way(tmp_path):
    run = make_folder(tmp_path / "run", *FINISHED)
    claim.set_aside(run)
    aside = run / PREVIOUS
    for path in claim.own_files(aside):
        path.unlink()
    (aside / "checkpoints").mkdir(exist_ok=True)
    (aside / f".{RESULT}.tmp").write_text("half")
    claim.check_folder(run, overwrite=True, resume=False)
    claim.drop_previous(run)
    assert not aside.exists()
    for foreign in ("notes.txt", "checkpoints/notes.txt"):
        (aside / "checkpoints").mkdir(parents=True, exist_ok=True)
        (aside / foreign).write_text("mine")
        with pytest.raises(UserError, match="in the way"):
            claim.check_folder(run, overwrite=True, resume=False)
        claim.drop_previous(run)
        assert (aside / foreign).read_text() == "mine"
        (aside / foreign).unlink()
