"""Count machine instructions in a listing of a few lines, and in nvcc's own if it is there."""

import pytest
import torch

from tools.benchmark import __main__ as benchmark
from tools.benchmark import sass

LISTING = """
.text.kernel_a:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR8][R4.64] ;
.L_x_2:
        /*0020*/                   IADD3 R5, R5, 0x1, RZ ;
        /*0030*/              @!P1 BRA `(.L_x_2) ;
.L_x_4:
        /*0040*/                   STG.E.128 desc[UR8][R6.64], R4 ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_3:
        /*0070*/                   BRA `(.L_x_4) ;
.text.kernel_b:
        /*0000*/                   EXIT ;
"""


def test_loops_of_a_listing_by_hand():
    codes = sass.parse(LISTING)
    assert list(codes) == ["kernel_a", "kernel_b"]
    code = codes["kernel_a"]
    assert code.loops == [(1, 6), (2, 4)]  # not the way back from behind the end
    assert code.loop("LDG").operations == ["LDG.E.128", "IADD3", "BRA", "STG.E.128", "BRA"]
    assert code.loop("IADD3").operations == ["IADD3", "BRA"]
    assert code.loop("LDG").count("STG") == 1
    with pytest.raises(LookupError, match="no loop with ATOMS"):
        code.loop("ATOMS")


def test_rivals_by_hand():
    low, high = torch.zeros(2, 33), torch.ones(2, 33)
    low[:, 16] = 2  # of the first 16 cells the last, of the others the first
    logits = torch.stack([low, high, low - 5])[None]
    assert sass.count_rivals(logits) == 2  # where class 0 reaches over class 1
    assert sass.count_rivals(torch.stack([low * 0, high])[None]) == 1


def test_what_is_missing_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    benchmark.main(benchmark.parse_args(["sass"]))
    assert capsys.readouterr().out == "skipped: nvcc and nvdisasm not on the PATH\n"


def test_every_kernel_reaches_its_goal():
    """Hold the estimates that docs/performance.md prints, for the machine code of this nvcc."""
    if reason := sass.missing():
        pytest.skip(reason)
    rows = {row["name"].partition(" x")[0]: row for row in sass.run("sm_90")}
    assert all(row["spilled_bytes"] == 0 for row in rows.values())
    assert rows["confusion_matrix uint8"]["issue_tb_per_s"] >= 3.0
    assert rows["hard_vote of 5"]["issue_tb_per_s"] >= 3.0
    assert rows["cutmix, one box, uint8"]["issue_tb_per_s"] >= sass.MEMORY / 1e12
    assert rows["classmix, uint8"]["issue_tb_per_s"] >= sass.MEMORY / 1e12
    assert rows["argmax_upsample"]["us_a_map"] <= 12
