"""Claims are judged by the seeds they share; the README's tables are those of the table in results."""
from pathlib import Path

import pytest

from nanoverify import findings
from nanoverify.files import InputError
from nanoverify.study import HEADER, read_table, write_table

ROOT = Path(__file__).parents[1]
ROWS = {("SFT", 0): {"final_accuracy": "0.90", "tpr": "0.9", "tnr": "0.5"}, ("SFT", 1): {"final_accuracy": "0.94", "tpr": "", "tnr": "0.5"},
        ("outcome", 0): {"final_accuracy": "0.98", "tpr": "", "tnr": ""}, ("outcome", 1): {"final_accuracy": "0.92", "tpr": "", "tnr": ""},
        ("outcome", 2): {"final_accuracy": "0.10", "tpr": "", "tnr": ""}}


@pytest.mark.parametrize("comparison, expected", [
    (("outcome", "final_accuracy", ">", "SFT", "final_accuracy"), ("outcome final accuracy 95.0% > SFT 92.0% (1 of 2)", 1, 2, True)),
    (("outcome", "final_accuracy", "<", "SFT", "final_accuracy"), ("outcome final accuracy 95.0% < SFT 92.0% (1 of 2)", 1, 2, False)),
    (("SFT", "final_accuracy", ">", 0.91), ("SFT final accuracy 92.0% > 91.0% (1 of 2)", 1, 2, True)),
    (("SFT", "tpr-tnr", ">", 0.0), ("SFT tpr-tnr 40.0% > 0.0% (1 of 1)", 1, 1, True)),
    (("SFT", "final_accuracy", "=", "SFT", "final_accuracy"), ("SFT final accuracy 92.0% = 92.0% (2 of 2)", 2, 2, True)),
    (("gae", "final_accuracy", ">", "SFT", "final_accuracy"), ("gae: not run", 0, 0, False))])
def test_comparisons_use_the_seeds_both_arms_have(comparison, expected):
    """Bug: a seed that only one arm has moves its mean, seeds are paired wrongly, or an empty cell counts as 0."""
    assert findings.judge(ROWS, comparison) == expected


@pytest.mark.parametrize("comparisons, holds", [
    ([("SFT", "final_accuracy", ">", 0.5)], "yes"), ([("SFT", "final_accuracy", ">", 0.91)], "in the mean"), ([("SFT", "final_accuracy", ">", 0.93)], "no"),
    ([("SFT", "final_accuracy", ">", 0.5), ("SFT", "final_accuracy", ">", 0.93)], "no"), ([("SFT", "final_accuracy", ">", 0.5), ("gae", "tpr", ">", 0.5)], "not run")])
def test_verdicts(comparisons, holds):
    """Bug: one comparison that holds hides another that does not."""
    [line] = findings.findings_table(ROWS, [("F", "claim", "paper", comparisons)])
    assert line.startswith("| F | claim | paper | SFT final accuracy") and line.endswith(f"| {holds} |")


def test_claims_name_columns_that_exist():
    """Bug: a claim about a column nobody writes stops the tables after hours."""
    columns = {name for _, _, _, comparisons in (*findings.FINDINGS, *findings.CONTROLS) for one in comparisons for name in (one[1], *one[4:5])}
    assert {part for column in columns for part in column.split("-")} <= set(HEADER)


def test_table_survives_the_file(tmp_path):
    """Bug: what is written is not what is read."""
    write_table(tmp_path / "s.csv", {key: {"arm": key[0], "seed": key[1], **row} for key, row in ROWS.items()})
    found = read_table(tmp_path / "s.csv")
    assert {key: {name: row[name] for name in ("final_accuracy", "tpr", "tnr")} for key, row in found.items()} == ROWS
    with pytest.raises(InputError, match="missing.csv"):
        findings.main([str(tmp_path / "missing.csv")])
