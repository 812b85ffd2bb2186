"""Files that are written whole, never through a link, readable to whom the user says."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine import files
from engine.errors import UserError
from worlds import ROOT


def test_a_link_in_place_of_an_output_is_replaced_and_not_followed(tmp_path: Path):
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    for name, write in (
        ("scores.json", lambda path: files.write_text(path, "new")),
        ("last.pth", lambda path: files.save_tensors({}, path)),
    ):
        (tmp_path / name).symlink_to(mine)
        write(tmp_path / name)
        assert not (tmp_path / name).is_symlink()
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_log_is_never_written_through_a_link(link, tmp_path: Path):
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    link(mine, tmp_path / "log.jsonl")
    with pytest.raises(UserError, match=r"log\.jsonl"):
        files.append_line(tmp_path / "log.jsonl", "{}")
    assert mine.read_text() == "mine"


def test_modes_follow_the_umask(tmp_path: Path):
    code = (
        "import os, sys; os.umask(int(sys.argv[2], 8)); from engine import files\n"
        "files.write_text(sys.argv[1] + '/a', ''); files.append_line(sys.argv[1] + '/b', '')"
    )
    for umask, mode in (("027", 0o640), ("002", 0o664)):
        folder = tmp_path / umask
        folder.mkdir()
        subprocess.run([sys.executable, "-c", code, str(folder), umask], cwd=ROOT, check=True)
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_a_full_disk_is_said_with_the_file(monkeypatch, tmp_path: Path):
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/a\.csv'"),
        files.whole(tmp_path / "a.csv") as file,
    ):
        file.write(b"1")
    monkeypatch.setattr(os, "fchmod", lambda *_: full(0))
    with pytest.raises(UserError, match=r"cannot write .*/a\.json: No space left on device"):
        files.write_text(tmp_path / "a.json", "1")
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_is_not_written_over(tmp_path: Path):
    (tmp_path / "in").write_text("x")
    for name, link in (("soft", os.symlink), ("hard", os.link)):
        link(tmp_path / "in", tmp_path / name)
        with pytest.raises(UserError, match=f"{name} would be written over"):
            files.refuse_replacing([tmp_path / name], [tmp_path / "in"])
    with pytest.raises(UserError, match="would be written over"):
        files.refuse_replacing([tmp_path / "no" / ".." / "in", tmp_path / "in"], [tmp_path / "in"])
    files.refuse_replacing([tmp_path / "new"], [tmp_path / "in", tmp_path / "gone"])
