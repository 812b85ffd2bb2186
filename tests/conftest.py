"""Fixtures that more than one test file uses."""

import os

# One thread: the tests' tensors are small, and two threads that wait for each other on a busy
# machine are ten times slower. Before torch is imported, so that scripts started here inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

import fakedata


@pytest.fixture
def official(monkeypatch):
    """Yield the official evaluation as a module, made to run with NumPy 2.4 and in silence."""
    pytest.importorskip("cityscapesscripts", reason="needs the official cityscapesscripts")
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as module

    # cityscapesscripts 2.3.0 calls a function that NumPy 2.4 removed
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.setattr(module.args, "quiet", True)
    monkeypatch.setattr(module.args, "JSONOutput", False)
    return module


@pytest.fixture
def camvid(tmp_path):
    """Return a folder whose val split has three labelled images of 40x24 pixels."""
    return fakedata.make_camvid(tmp_path / "camvid", n=3, size=(40, 24))
