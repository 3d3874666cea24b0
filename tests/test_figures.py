"""The study's figures: every dot where its number says, and one line where the table is none."""
import csv
import re

import pytest

from nanoverify.study import figures
from nanoverify.support.files import InputError


def table(path, value=0.9):
    columns = sorted({column for _, _, labels, *_ in figures.FIGURES.values()
                      for column in labels.values()})
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["arm", "seed", *columns])
        writer.writeheader()
        for arm in ("base", "SFT", "process", "both", "outcome", "shuffled"):
            for seed in range(2):
                writer.writerow(
                    {"arm": arm, "seed": seed,
                     **{c: "" if arm == "base" and c == "final_accuracy_level_5" else 2.5
                        if c.startswith("trials") else value for c in columns}})
    return str(path)


def test_dots_stand_where_the_numbers_say():
    """Bug: the axis is upside down, a seed's dot is missing, or the mean is not theirs."""
    svg = figures.dots("T", {"one": {"SFT": [0.0, 1.0], "outcome": [0.5]}}, 0, 1, True)
    ys = [float(y) for y in re.findall(r'<circle cx="[0-9.]+" cy="([0-9.]+)"', svg)]
    top, bottom = figures.TOP, figures.TOP + figures.HEIGHT
    assert ys == [bottom, top, (top + bottom) / 2]
    assert [float(y) for y in re.findall(r"M[0-9.]+ ([0-9.]+)h18", svg)] == [(top + bottom) / 2] * 2
    with pytest.raises(InputError, match="one of SFT is 1.5"):
        figures.dots("T", {"one": {"SFT": [1.5]}}, 0, 1, True)


def test_command(tmp_path, capsys):
    """Bug: other arms get into the figures, an empty cell stops them, or a wrong file gives a
    traceback."""
    figures.main([table(tmp_path / "study.csv"), "--out", str(tmp_path)])
    dots = {name: (tmp_path / f"{name}.svg").read_text().count("<circle")
            for name in figures.FIGURES}
    assert dots == {"accuracy": 5 * 2 * 7 - 2, "verification": 4 * 2 * 6, "attempts": 4 * 2 * 5}
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(b"\xc8\x00")
    (tmp_path / "empty.csv").write_text("")
    for bad in ("other.csv", "missing.csv", "binary.csv", "empty.csv"):
        with pytest.raises(InputError, match=bad):
            figures.main([str(tmp_path / bad), "--out", str(tmp_path)])
