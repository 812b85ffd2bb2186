"""What a run's folder may hold before it begins."""

from pathlib import Path

import pytest

from engine.errors import UserError
from training.run import make_folder


@pytest.mark.parametrize("name", ["day_300.pth", "a_b_best.pth", "x_finished.pth", "last.pth"])
def test_a_run_does_not_replace_what_it_begins_with(name: str, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for start in (tmp_path / "run" / name, tmp_path / "link" / name):
        with pytest.raises(UserError, match=f"{name} would be written over by this run"):
            make_folder(tmp_path / "run", None, "imagenet", str(start))
    make_folder(tmp_path / "other", str(tmp_path / "run" / name))
    make_folder(tmp_path / "run", str(tmp_path / "run" / "resnet.pth"), "none")
