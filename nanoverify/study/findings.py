"""Tables of results for docs/results.md, from the table that the study writes.

    python -m nanoverify.findings results/study.csv

Stages, other arms, unseen families, more attempts; then the paper's findings, those about RL once
more from a weak SFT model, and the controls. Each compares two arms on the seeds that both have.

A comparison holds if the whole 95% interval of the mean difference (Student's t over the seeds)
agrees with it. It is refuted if the whole interval contradicts it, and else unclear, as with one
seed. A claim holds if all its comparisons do, and does not if one is refuted. The interval contains
the noise of training. It does not contain that of the 1,000 questions (unseen families: 100), which
are the same for all.
"""
from pathlib import Path
from statistics import mean, stdev

from nanoverify.evaluate import COLUMNS, cell
from nanoverify.puzzles import HELD_OUT, LEVELS
from nanoverify.study.figures import STAGES
from nanoverify.study.study import ALLOWED, FAILURES, SEEDS, read_table
from nanoverify.support.files import InputError, run
from nanoverify.support.flags import Parser

LEVELLED = ("first_accuracy", "final_accuracy", "trials")  # also shown by level
SHOWN = ("first_accuracy", "final_accuracy", "verification_accuracy", "tpr", "tnr", "trials",
         "repeats", "well_formed", "tokens_per_response")  # of the other arms
CLOSE = 0.02  # tolerance of "~", ">=" and "<="
T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
# {number of seeds: 97.5% quantile of Student's t}

# (name, claim, the paper's figures, comparisons). A comparison is
# (arm, column, relation, arm, column) or (arm, column, relation, number). Relations:
#     > <      as they are
#     >= <=    not below, not above by more than CLOSE
#     ~        at most CLOSE apart
#     =        the same on each seed
FINAL, FIRST, CHECKS = "final_accuracy", "first_accuracy", "verification_accuracy"
TO_WRONG, TO_RIGHT = "correct_to_incorrect", "incorrect_to_correct"
FINDINGS = (
    ("F1", "SFT installs the format", "well-formed at least 95%",
     [("SFT", "well_formed", ">=", 0.95), ("SFT", "follows_verdict", ">=", 0.95)]),
    ("F2", "SFT is at least as good as the base; SFT on gold solutions is worse",
     "MATH500, Qwen2-7B: base 51.2, SFT 61.2, gold 41.2; Llama 48.0, 49.6, 31.0",
     [("SFT", FINAL, ">=", "base", FINAL), ("gold", FINAL, "<", "SFT", FINAL)]),
    ("F3", "either RL is better than SFT", "Qwen2-7B: SFT 61.2, process 65.4, outcome 64.8",
     [("process", FINAL, ">", "SFT", FINAL), ("outcome", FINAL, ">", "SFT", FINAL)]),
    ("F4", "problem-solving checks lean to \"correct\"; confirmative ones, the default, are "
           "balanced and catch more errors",
     "TPR, TNR, Qwen2-7B: problem-solving 90.2, 67.4; confirmative 76.2, 70.1",
     [("problem-solving", "tpr", ">", "problem-solving", "tnr"),
      ("SFT", "tpr", "~", "SFT", "tnr"), ("SFT", "tnr", ">", "problem-solving", "tnr")]),
    ("F5", "verification accuracy: SFT < outcome < process", "Qwen2-7B: 58.3, 63.9, 67.9",
     [("outcome", CHECKS, ">", "SFT", CHECKS), ("process", CHECKS, ">", "SFT", CHECKS),
      ("process", CHECKS, ">", "outcome", CHECKS)]),
    ("F6", "outcome RL raises error recall and correct precision",
     "Qwen2-7B: 81.9 to 87.3, 65.6 to 69.8",
     [("outcome", "error_recall", ">", "SFT", "error_recall"),
      ("outcome", "correct_precision", ">", "SFT", "correct_precision")]),
    ("F7", "right answers turned wrong: fewer with RL, fewest with outcome",
     "Qwen2-7B: SFT 8.4, process 5.4, outcome 3.9",
     [("process", TO_WRONG, "<", "SFT", TO_WRONG), ("outcome", TO_WRONG, "<", "SFT", TO_WRONG),
      ("outcome", TO_WRONG, "<", "process", TO_WRONG)]),
    ("F8", "wrong answers turned right: more with process RL",
     "Qwen2-7B: 20.0 to 22.2 (outcome: 19.6); Qwen2.5-Math 6.5 to 12.2",
     [("process", TO_RIGHT, ">", "SFT", TO_RIGHT)]),
    ("F9", "outcome is at least as good as process where the base is strong",
     "Qwen2.5-Math: 84.4, 83.4; Qwen2-7B: 64.8, 65.4",
     [("outcome", FINAL, ">=", "process", FINAL)]),
    ("F10", "harder questions get more attempts; RL spends fewer on easy ones", "a figure",
     [("outcome", "trials_level_3", ">", "outcome", "trials_level_1"),
      ("outcome", "trials_level_5", ">", "outcome", "trials_level_3"),
      ("outcome", "trials_level_1", "<", "SFT", "trials_level_1")]),
    ("F11", "offline RL is close to online", "close", [("offline", FINAL, "~", "both", FINAL)]),
    ("F12", "what was learned transfers to unseen families",
     "7 benchmarks, Qwen2-7B: base 35.3, SFT 42.4, outcome 44.1",
     [("outcome", f"final_{family}", ">", "base", f"final_{family}") for family in HELD_OUT]),
)
# the same claims about RL from an SFT model stopped early, when one check in six was still wrong
EARLY = {"SFT": "weak", "process": "weak-process", "outcome": "weak-outcome"}
EARLY_FINDINGS = [
    (name, claim, paper, [tuple(EARLY.get(x, x) for x in comparison) for comparison in comparisons])
    for name, claim, paper, comparisons in FINDINGS if name in ("F3", "F5", "F6", "F7", "F8")]
CONTROLS = (
    ("verdict", "checks tell more than \"correct\" each time", "",
     [(arm, CHECKS, ">", arm, "always_correct") for arm in ("SFT", "both")]),
    ("vote", "better than a majority vote of the base with as many tokens", "",
     [("both", FINAL, ">", "majority", FINAL)]),
    ("first", "it is the last answer that gets better, not the first", "",
     [("both", FINAL, ">", "both", FIRST), ("both", FIRST, "<=", "SFT", FIRST)]),
    ("no SFT", "RL needs the SFT stage", "", [("no-sft", FINAL, "<", "both", FINAL)]),
    ("solutions", "SFT on the base's own right solutions does not do it", "",
     [("correct-only", FINAL, "<", "SFT", FINAL)]),
    ("shuffled", "with rewards dealt out at random nothing rises", "",
     [("shuffled", column, "<=", "SFT", column) for column in (FINAL, CHECKS)]),
    ("lr 0", "with learning rate 0 nothing moves", "",
     [("lr0", column, "=", "SFT", column) for column in (FIRST, FINAL)]),
)


def by_seed(rows: dict, arm: str, column: str) -> dict[int, float]:
    """{seed: value}; seeds without a value are left out."""
    return {seed: float(row[column]) for (name, seed), row in rows.items()
            if name == arm and row[column]}


def span(column: str, values) -> str:
    """'97.2% (96.8% to 97.9%)': mean, lowest and highest."""
    if not values:
        return "-"
    low, high = (cell(column, end(values)) for end in (min, max))
    return cell(column, mean(values)) + (f" ({low} to {high})" if low != high else "")


def many(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds > 1)}"


def holds(relation: str, differences: list[float]) -> bool | None:
    """Whether the relation holds for the differences, left - right, of the seeds. None: unclear."""
    if relation == "=":
        return not any(differences)
    if len(differences) < 2:
        return None
    d, noise = mean(differences), T.get(len(differences), 2.26) * standard_error(differences)
    low, high = d - noise, d + noise
    if relation == "~":
        if -CLOSE <= low and high <= CLOSE:
            return True
        return False if low > CLOSE or high < -CLOSE else None
    if relation[0] == "<":
        low, high = -high, -low
    bound = -CLOSE if relation[1:] == "=" else 0.0
    if low > bound:
        return True
    return False if high < bound else None


def standard_error(values: list[float]) -> float:
    return stdev(values) / len(values) ** 0.5


def judge(rows: dict, comparison: tuple) -> tuple[str, bool | None]:
    """(text, whether it holds) of one comparison. The text has both means, the mean difference and
    its standard error, in percentage points or attempts.
    """
    # 1. the values on the seeds that both have
    arm, column, relation, other = comparison[:4]
    left = by_seed(rows, arm, column)
    if isinstance(other, str):
        right = by_seed(rows, other, comparison[4])
    else:
        right = dict.fromkeys(left, other)
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return f"{other if left else arm}: not run", None
    differences = [left[seed] - right[seed] for seed in seeds]

    # 2. the text
    means = [cell(column, mean([side[seed] for seed in seeds])) for side in (left, right)]
    scale = 1 if column.startswith("trials") else 100
    error = f" ± {scale * standard_error(differences):.2f}" if len(seeds) > 1 else ""
    text = (f"{arm} {words(column)} {means[0]} {relation} {right_name(comparison)}{means[1]} "
            f"({scale * mean(differences):+.2f}{error}, {many(len(seeds))})")
    return text, holds(relation, differences)


def words(column: str) -> str:
    return column.replace("_", " ")


def right_name(comparison: tuple) -> str:
    """The name of the right side, without what the left side has already named."""
    arm, column, _, *right = comparison
    if len(right) == 1:  # a number
        return ""
    other, other_column = right
    if other_column == column:
        return f"{other} "
    return f"{words(other_column)} " if other == arm else f"{other} {words(other_column)} "


def findings_table(rows: dict, claims) -> list[str]:
    """One line of a Markdown table for each claim."""
    lines = []
    for name, claim, paper, comparisons in claims:
        results = [judge(rows, comparison) for comparison in comparisons]
        verdicts = [verdict for _, verdict in results]
        overall = "no" if False in verdicts else "unclear" if None in verdicts else "yes"
        marks = {True: ": yes", False: ": **no**", None: ": unclear"}
        texts = [text + (marks[verdict] if len(results) > 1 else "") for text, verdict in results]
        lines.append(row(name, claim, paper, "; ".join(texts), overall))
    return lines


def row(*cells) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*names) -> list[str]:
    return ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]


def tables(rows: dict) -> str:
    """All tables, as Markdown."""
    counts = {arm: sum(name == arm for name, _ in rows) for arm in (*STAGES, *SEEDS)}
    stages = [arm for arm in STAGES if counts[arm]]
    others = [arm for arm in SEEDS if counts[arm] and arm not in STAGES]

    def spans(arm, columns):
        return [span(column, list(by_seed(rows, arm, column).values())) for column in columns]

    # 1. the stages: a metric a row
    levels = [f"{column}_level_{level}" for column in LEVELLED for level in LEVELS]
    columns = (*COLUMNS, "always_correct", *FAILURES, *levels, "trained_tokens", "seconds")
    lines = head(*[f"{arm}, {many(counts[arm])}" for arm in stages])
    lines += [row(f"`{column}`", *[spans(arm, [column])[0] for arm in stages])
              for column in columns]

    # 2. the other arms: an arm a row
    lines += ["", *head("seeds", *[f"`{column}`" for column in SHOWN])]
    lines += [row(f"`{arm}`", counts[arm], *spans(arm, SHOWN)) for arm in others]

    # 3. unseen families
    lines += ["", *head(*[f"{family}, first → last; VA" for family in HELD_OUT])]
    for arm in stages:
        cells = []
        for family in HELD_OUT:
            first, last, checks = spans(arm, [f"{x}_{family}" for x in ("first", "final", "VA")])
            cells.append(f"{first} → {last}; {checks}")
        lines.append(row(arm, *cells))

    # 4. more attempts
    lines += ["", *head(*[f"at most {k}" for k in ALLOWED])]
    lines += [row(arm, *spans(arm, [f"final_within_{k}" for k in ALLOWED])) for arm in stages]

    # 5. claims
    for claims in (FINDINGS, EARLY_FINDINGS, CONTROLS):
        lines += ["", *head("claim", "the paper", "here: means (difference ± its standard error)",
                            "holds"), *findings_table(rows, claims)]
    return "\n".join(lines)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("results", metavar="CSV", help="table of nanoverify.study")
    args = parser.parse_args(argv)
    rows = read_table(Path(args.results))
    if not rows:
        raise InputError(f"{args.results}: no such file, or no rows in it")
    print(tables(rows))


if __name__ == "__main__":
    run(main)
