"""Beside the path: tables of results for docs/results.md, from the table that the study writes.

    python -m nanoverify.findings results/study.csv

Stages, other arms, unseen families, more attempts; then the paper's findings, those about RL once more from a weak SFT model, and the controls, each as
comparisons of two arms on the seeds they share.
A comparison holds where the whole 95% interval of the mean difference (Student's t over the seeds) bears it out, and is refuted where the whole interval
speaks against it; else it is unclear, as it is with one seed. A claim holds where all its comparisons do, and does not where one is refuted. The interval
knows the noise of training, not that of the 1,000 (unseen families: 100) questions, which are the same for all.
"""
import argparse
from pathlib import Path
from statistics import mean, stdev

from nanoverify.evaluate import COLUMNS, cell
from nanoverify.figures import STAGES
from nanoverify.files import InputError, run
from nanoverify.puzzles import HELD_OUT, LEVELS
from nanoverify.study import ALLOWED, FAILURES, SEEDS, read_table

LEVELLED = ("first_accuracy", "final_accuracy", "trials")  # rows of the stages' table that are given by level, too
SHOWN = ("first_accuracy", "final_accuracy", "verification_accuracy", "tpr", "tnr", "trials", "repeats", "well_formed", "tokens_per_response")  # of the other arms
CLOSE = 0.02  # what "~", ">=" and "<=" allow
T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # 97.5% quantile of Student's t for so many seeds

# (name, claim, the paper's figures, comparisons: (arm, column, relation, arm, column) or (arm, column, relation, number))
# relations: > and < as they are; >= and <=: not below, not above by more than CLOSE; ~: at most CLOSE apart; =: the same on each seed
FINDINGS = (
    ("F1", "SFT installs the format", "well-formed at least 95%", [("SFT", "well_formed", ">=", 0.95), ("SFT", "follows_verdict", ">=", 0.95)]),
    ("F2", "SFT is at least as good as the base; SFT on gold solutions is worse", "MATH500, Qwen2-7B: base 51.2, SFT 61.2, gold 41.2; Llama 48.0, 49.6, 31.0",
     [("SFT", "final_accuracy", ">=", "base", "final_accuracy"), ("gold", "final_accuracy", "<", "SFT", "final_accuracy")]),
    ("F3", "either RL is better than SFT", "Qwen2-7B: SFT 61.2, process 65.4, outcome 64.8",
     [("process", "final_accuracy", ">", "SFT", "final_accuracy"), ("outcome", "final_accuracy", ">", "SFT", "final_accuracy")]),
    ("F4", "problem-solving checks lean to \"correct\"; confirmative ones, the default, are balanced and catch more errors",
     "TPR, TNR, Qwen2-7B: problem-solving 90.2, 67.4; confirmative 76.2, 70.1",
     [("problem-solving", "tpr", ">", "problem-solving", "tnr"), ("SFT", "tpr", "~", "SFT", "tnr"), ("SFT", "tnr", ">", "problem-solving", "tnr")]),
    ("F5", "verification accuracy: SFT < outcome < process", "Qwen2-7B: 58.3, 63.9, 67.9",
     [("outcome", "verification_accuracy", ">", "SFT", "verification_accuracy"), ("process", "verification_accuracy", ">", "SFT", "verification_accuracy"),
      ("process", "verification_accuracy", ">", "outcome", "verification_accuracy")]),
    ("F6", "outcome RL raises error recall and correct precision", "Qwen2-7B: 81.9 to 87.3, 65.6 to 69.8",
     [("outcome", "error_recall", ">", "SFT", "error_recall"), ("outcome", "correct_precision", ">", "SFT", "correct_precision")]),
    ("F7", "right answers turned wrong: fewer with RL, fewest with outcome", "Qwen2-7B: SFT 8.4, process 5.4, outcome 3.9",
     [("process", "correct_to_incorrect", "<", "SFT", "correct_to_incorrect"), ("outcome", "correct_to_incorrect", "<", "SFT", "correct_to_incorrect"),
      ("outcome", "correct_to_incorrect", "<", "process", "correct_to_incorrect")]),
    ("F8", "wrong answers turned right: more with process RL", "Qwen2-7B: 20.0 to 22.2 (outcome: 19.6); Qwen2.5-Math 6.5 to 12.2",
     [("process", "incorrect_to_correct", ">", "SFT", "incorrect_to_correct")]),
    ("F9", "outcome is at least as good as process where the base is strong", "Qwen2.5-Math: 84.4, 83.4; Qwen2-7B: 64.8, 65.4",
     [("outcome", "final_accuracy", ">=", "process", "final_accuracy")]),
    ("F10", "harder questions get more attempts; RL spends fewer on easy ones", "a figure",
     [*(("outcome", f"trials_level_{high}", ">", "outcome", f"trials_level_{low}") for low, high in ((1, 3), (3, 5))), ("outcome", "trials_level_1", "<", "SFT", "trials_level_1")]),
    ("F11", "offline RL is close to online", "close", [("offline", "final_accuracy", "~", "both", "final_accuracy")]),
    ("F12", "what was learned transfers to unseen families", "7 benchmarks, Qwen2-7B: base 35.3, SFT 42.4, outcome 44.1",
     [("outcome", f"final_{family}", ">", "base", f"final_{family}") for family in HELD_OUT]),
)
# the same claims about RL from an SFT model that was stopped early, when one check in six was still wrong
EARLY = {"SFT": "weak", "process": "weak-process", "outcome": "weak-outcome"}
EARLY_FINDINGS = [(name, claim, paper, [tuple(EARLY.get(part, part) for part in comparison) for comparison in comparisons])
                  for name, claim, paper, comparisons in FINDINGS if name in ("F3", "F5", "F6", "F7", "F8")]
CONTROLS = (
    ("verdict", "checks tell more than \"correct\" each time", "", [(arm, "verification_accuracy", ">", arm, "always_correct") for arm in ("SFT", "both")]),
    ("vote", "better than a majority vote of the base with as many tokens", "", [("both", "final_accuracy", ">", "majority", "final_accuracy")]),
    ("first", "it is the last answer that gets better, not the first", "",
     [("both", "final_accuracy", ">", "both", "first_accuracy"), ("both", "first_accuracy", "<=", "SFT", "first_accuracy")]),
    ("no SFT", "RL needs the SFT stage", "", [("no-sft", "final_accuracy", "<", "both", "final_accuracy")]),
    ("solutions", "SFT on the base's own right solutions does not do it", "", [("correct-only", "final_accuracy", "<", "SFT", "final_accuracy")]),
    ("shuffled", "with rewards dealt out at random nothing rises", "", [("shuffled", column, "<=", "SFT", column) for column in ("final_accuracy", "verification_accuracy")]),
    ("lr 0", "with learning rate 0 nothing moves", "", [("lr0", column, "=", "SFT", column) for column in ("first_accuracy", "final_accuracy")]),
)


def by_seed(rows: dict, arm: str, column: str) -> dict[int, float]:
    """{seed: value}; seeds without a value are left out."""
    return {seed: float(row[column]) for (name, seed), row in rows.items() if name == arm and row[column]}


def span(column: str, values) -> str:
    """'97.2% (96.8% to 97.9%)': mean, lowest and highest."""
    if not values:
        return "-"
    low, high = (cell(column, end(values)) for end in (min, max))
    return cell(column, mean(values)) + (f" ({low} to {high})" if low != high else "")


def many(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds > 1)}"


def holds(relation: str, differences: list[float]) -> bool | None:
    """Do the differences of the seeds, left - right, bear the relation out? None: unclear."""
    if relation == "=":
        return not any(differences)
    if len(differences) < 2:
        return None
    d, noise = mean(differences), T.get(len(differences), 2.26) * standard_error(differences)
    low, high = d - noise, d + noise
    if relation == "~":
        return True if -CLOSE <= low and high <= CLOSE else False if low > CLOSE or high < -CLOSE else None
    if relation[0] == "<":
        low, high = -high, -low
    bound = -CLOSE if relation[1:] == "=" else 0.0
    return True if low > bound else False if high < bound else None


def standard_error(values: list[float]) -> float:
    return stdev(values) / len(values) ** 0.5


def judge(rows: dict, comparison: tuple) -> tuple[str, bool | None]:
    """(what was found, does it hold?) of one comparison: means, the mean difference and its standard error, in points or attempts."""
    arm, column, relation, other = comparison[:4]
    left = by_seed(rows, arm, column)
    right = by_seed(rows, other, comparison[4]) if isinstance(other, str) else dict.fromkeys(left, other)
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return f"{other if left else arm}: not run", None
    differences = [left[seed] - right[seed] for seed in seeds]
    name = lambda arm, column: f"{arm} {column.replace('_', ' ')}"
    means = [cell(column, mean([side[seed] for seed in seeds])) for side in (left, right)]
    target = "" if not isinstance(other, str) else other + " " if comparison[4] == column else name("" if other == arm else other, comparison[4]).strip() + " "
    scale = 1 if column.startswith("trials") else 100
    error = f" ± {scale * standard_error(differences):.2f}" if len(seeds) > 1 else ""
    return f"{name(arm, column)} {means[0]} {relation} {target}{means[1]} ({scale * mean(differences):+.2f}{error}, {many(len(seeds))})", holds(relation, differences)


def findings_table(rows: dict, claims) -> list[str]:
    lines = []
    for name, claim, paper, comparisons in claims:
        judged = [judge(rows, comparison) for comparison in comparisons]
        verdicts = [verdict for _, verdict in judged]
        said = "no" if False in verdicts else "unclear" if None in verdicts else "yes"
        texts = [text + ("" if len(judged) == 1 else {True: ": yes", False: ": **no**", None: ": unclear"}[verdict]) for text, verdict in judged]
        lines.append(f"| {name} | {claim} | {paper} | " + "; ".join(texts) + f" | {said} |")
    return lines


def tables(rows: dict) -> str:
    """All of it, as Markdown."""
    arms = [arm for arm in dict.fromkeys((*STAGES, *SEEDS)) if any(name == arm for name, _ in rows)]
    stages, others = [arm for arm in arms if arm in STAGES], [arm for arm in arms if arm not in STAGES]
    values = lambda arm, column: list(by_seed(rows, arm, column).values())
    head = lambda *names: ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    count = lambda arm: sum(name == arm for name, _ in rows)

    lines = head(*[f"{arm}, {many(count(arm))}" for arm in stages])
    for column in (*COLUMNS, "always_correct", *FAILURES, *(f"{column}_level_{level}" for column in LEVELLED for level in LEVELS), "trained_tokens", "seconds"):
        lines.append(f"| `{column}` | " + " | ".join(span(column, values(arm, column)) for arm in stages) + " |")
    lines += ["", *head("seeds", *[f"`{column}`" for column in SHOWN])]
    lines += [f"| `{arm}` | {count(arm)} | " + " | ".join(span(column, values(arm, column)) for column in SHOWN) + " |" for arm in others]
    lines += ["", *head(*[f"{family}, first → last; VA" for family in HELD_OUT])]
    for arm in stages:
        lines.append(f"| {arm} | " + " | ".join("{} → {}; {}".format(*(span(column, values(arm, f"{column}_{family}")) for column in ("first", "final", "VA")))
                                                for family in HELD_OUT) + " |")
    lines += ["", *head(*[f"at most {k}" for k in ALLOWED])]
    lines += [f"| {arm} | " + " | ".join(span("share", values(arm, f"final_within_{k}")) for k in ALLOWED) + " |" for arm in stages]
    for claims in (FINDINGS, EARLY_FINDINGS, CONTROLS):
        lines += ["", *head("claim", "the paper", "here: means (difference ± its standard error)", "holds"), *findings_table(rows, claims)]
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="CSV", help="table of nanoverify.study")
    args = parser.parse_args(argv)
    rows = read_table(Path(args.results))
    if not rows:
        raise InputError(f"{args.results}: no such file, or no rows in it")
    print(tables(rows))


if __name__ == "__main__":
    run(main)
