"""Claims are judged by the seeds that both arms have, and by their noise."""
import pytest

from nanoverify.study import findings
from nanoverify.study.study import HEADER, SEEDS, read_table, write_table
from nanoverify.support.files import InputError

ROWS = {("SFT", 0): {"final_accuracy": "0.90", "tpr": "0.9", "tnr": "0.5"},
        ("SFT", 1): {"final_accuracy": "0.94", "tpr": "", "tnr": "0.5"},
        ("outcome", 0): {"final_accuracy": "0.98", "tpr": "", "tnr": ""},
        ("outcome", 1): {"final_accuracy": "0.92", "tpr": "", "tnr": ""},
        ("outcome", 2): {"final_accuracy": "0.10", "tpr": "", "tnr": ""}}


@pytest.mark.parametrize(
    "comparison, expected",
    [(("outcome", "final_accuracy", ">", "SFT", "final_accuracy"),
      ("outcome final accuracy 95.0% > SFT 92.0% (+3.00 ± 5.00, 2 seeds)", None)),
     (("SFT", "final_accuracy", ">", 0.8),
      ("SFT final accuracy 92.0% > 80.0% (+12.00 ± 2.00, 2 seeds)", None)),
     (("SFT", "tpr", ">", "SFT", "tnr"), ("SFT tpr 90.0% > tnr 50.0% (+40.00, 1 seed)", None)),
     (("SFT", "final_accuracy", "=", "SFT", "final_accuracy"),
      ("SFT final accuracy 92.0% = SFT 92.0% (+0.00 ± 0.00, 2 seeds)", True)),
     (("gae", "final_accuracy", ">", "SFT", "final_accuracy"), ("gae: not run", None)),
     (("SFT", "final_accuracy", ">", "gae", "final_accuracy"), ("gae: not run", None))])
def test_comparisons_use_the_seeds_both_arms_have(comparison, expected):
    """Bug: a seed that only one arm has moves its mean, seeds are paired wrongly, an empty cell
    counts as 0, or the wrong arm is called missing."""
    assert findings.judge(ROWS, comparison) == expected


@pytest.mark.parametrize(
    "relation, differences, expected",
    [(">", [0.02, 0.021], True), (">", [0.02, 0.03], None), (">", [-0.02, -0.021], False),
     (">", [0.5], None), (">", [0.01, 0.01], True), (">", [0.01, 0.02, 0.03], None),
     (">", [0.01, 0.02, 0.02], True), ("<", [-0.02, -0.021], True), ("<", [0.02, 0.021], False),
     ("<", [-0.02, 0.01], None), (">=", [-0.010, -0.011], True), (">=", [-0.03, -0.031], False),
     (">=", [0.3, -0.32], None), ("<=", [0.010, 0.011], True), ("<=", [0.03, 0.031], False),
     ("<=", [0.05, -0.01], None), ("~", [0.010, -0.010], None), ("~", [0.010, 0.0101], True),
     ("~", [0.03, 0.031], False), ("~", [-0.03, -0.031], False), ("~", [0.0], None),
     ("=", [0.0, 0.0], True), ("=", [0.01, -0.01], False)])
def test_what_holds(relation, differences, expected):
    """Bug: noise counts as a finding, a refuted claim as unclear, or a side is mixed up."""
    assert findings.holds(relation, differences) is expected


def test_standard_error_by_hand():
    """Bug: n for n - 1, or the deviation of one seed for that of the mean. 1, 2, 6: variance 7,
    over 3 seeds."""
    assert findings.standard_error([1.0, 2.0, 6.0]) == pytest.approx((7 / 3) ** 0.5)


@pytest.mark.parametrize("comparisons, said",
                         [([("SFT", "final_accuracy", ">", 0.5)], "yes"),
                          ([("SFT", "final_accuracy", ">", 0.91)], "unclear"),
                          ([("SFT", "final_accuracy", "<", 0.5)], "no"),
                          ([("SFT", "final_accuracy", ">", 0.5),
                            ("SFT", "final_accuracy", "<", 0.5), ("gae", "tpr", ">", 0.5)], "no"),
                          ([("gae", "tpr", ">", 0.5)], "unclear")])
def test_verdicts(comparisons, said):
    """Bug: one comparison that holds hides another that does not."""
    [line] = findings.findings_table(ROWS, [("F", "claim", "paper", comparisons)])
    assert line.startswith("| F | claim | paper | ") and line.endswith(f"| {said} |")


def test_claims_name_arms_and_columns_that_exist():
    """Bug: a claim about a column nobody writes stops the tables after hours; one about an arm
    nobody runs stays unclear for ever."""
    comparisons = [one for _, _, _,
                   found in (*findings.FINDINGS, *findings.EARLY_FINDINGS, *findings.CONTROLS)
                   for one in found]
    assert {column for one in comparisons for column in (one[1], *one[4:5])} <= set(HEADER)
    assert {arm for one in comparisons
            for arm in (one[0], one[3]) if isinstance(arm, str)} <= {"base", "SFT", "both", *SEEDS}
    assert {one[2] for one in comparisons} <= {">", "<", ">=", "<=", "~", "="}


def test_every_arm_stands_in_one_table(tmp_path):
    """Bug: an arm is there twice, or in none."""
    rows = {(arm, 0): {"arm": arm, "seed": 0, **dict.fromkeys(HEADER[2:], "0.5")}
            for arm in ("base", "SFT", "both", *SEEDS) if arm != "main"}
    text = findings.tables(rows)
    head = "| | base, 1 seed | SFT, 1 seed | process, 1 seed | both, 1 seed | outcome, 1 seed |"
    assert head in text.splitlines()
    assert all(text.count(f"\n| `{arm}` | 1 |") == (arm not in findings.STAGES) for arm, _ in rows)


def test_table_survives_the_file(tmp_path):
    """Bug: what is written is not what is read."""
    write_table(tmp_path / "s.csv",
                {key: {"arm": key[0], "seed": key[1], **row} for key, row in ROWS.items()})
    found = read_table(tmp_path / "s.csv")
    assert {key: {name: row[name] for name in ("final_accuracy", "tpr", "tnr")}
            for key, row in found.items()} == ROWS
    (tmp_path / "binary.csv").write_bytes(b"\xc8\x00")
    for bad in ("missing.csv", "binary.csv"):
        with pytest.raises(InputError, match=bad):
            findings.main([str(tmp_path / bad)])
