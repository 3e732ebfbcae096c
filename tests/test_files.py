"""Files appear whole or not at all, where the user meant them."""

import errno
import os
from pathlib import Path

import pytest

from splatdistill import files
from splatdistill.errors import UserError


def write(path: Path, content: bytes = b"new") -> None:
    with files.atomic_write(path) as file:
        file.write(content)


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to("target")
    dangling.symlink_to("nowhere")
    write(link)
    write(dangling)
    assert link.is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    assert dangling.is_symlink() and (tmp_path / "nowhere").read_bytes() == b"new"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match="give the name of a file"):
            write(path)
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code, said", [(errno.ENOSPC, "make room"), (errno.EROFS, "a folder")])
def test_what_the_system_refuses_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, call, code, said):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(UserError, match=said):
            write(path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("length", [250, 255, 256, 5000])
def test_long_names_are_written_or_refused_in_one_line(tmp_path, length):
    path = tmp_path / ("a" * length)
    try:
        write(path)
    except UserError as error:
        assert "too long" in str(error) and not list(tmp_path.iterdir())
    else:
        assert path.read_bytes() == b"new"
