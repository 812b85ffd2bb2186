"""The table of networks and encoders: what the page says is what is built."""

import re

import pytest
import torch

from models import MODELS, build_model
from models.encoders import ENCODERS
from tools import network_table


def written() -> list[list[str]]:
    """Return the cells of the page's table, its head first."""
    _, _, rest = network_table.PAGE.read_text().partition(network_table.BEGIN)
    table, _, _ = rest.partition(network_table.END)
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]


def test_the_page_has_every_network_and_family():
    head, *rows = written()
    assert head[1:] == network_table.representatives()
    assert [row[0] for row in rows] == network_table.on_any_encoder()
    page = network_table.PAGE.read_text()
    assert all(f"`{name}" in page for name in MODELS)
    families = {ENCODERS[name].build for name in head[1:]}
    assert families == {row.build for row in ENCODERS.values()}


def test_a_row_and_a_column_are_what_is_built():
    head, *rows = written()
    for row in rows:
        options = {"encoder": head[1]}
        assert network_table.cell(row[0], options) == row[1], row[0]
    row = next(row for row in rows if row[0] == "unetplusplus")
    for encoder, expected in zip(head[1:], row[1:], strict=True):
        assert network_table.cell("unetplusplus", {"encoder": encoder}) == expected, encoder


def test_a_multiplication_and_an_addition_are_two_operations():
    """PIDNet-S, 7 classes and its training heads, on the six images of 512x512 of LoveDA's report.

    fvcore 0.1.5 counts 37.645910016 G in its convolutions, each pair as one, and 37.9 G in all.
    """
    with torch.device("meta"):
        network = build_model("pidnet", 7, boundary=True).eval()
        images = torch.zeros(6, 3, 512, 512)
    assert network_table.operations(network, images) == 2 * 37_645_910_016


def test_every_network_and_encoder_has_its_cost():
    _, _, rest = network_table.PAGE.read_text().partition(network_table.BEGIN_COSTS)
    tables, _, _ = rest.partition(network_table.END)
    names = re.findall(r"^\| `(\w+)` \| [\d.]+ \| [\d.e+]+ \| (?:\d+|-) \|$", tables, re.M)
    assert names == [*MODELS, *ENCODERS]


@pytest.mark.slow
def test_the_whole_page_is_what_is_built():
    page = network_table.PAGE.read_text()
    assert network_table.page_with(page, network_table.table()) == page
