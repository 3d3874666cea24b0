"""One HTML page that shows what a run did, from the output folders of the three scripts.

    python -m nanoverify.report out/data out/sft out/rl    # -> report.html, open it in any browser
    python -m nanoverify.report out/rl --out now.html      # while it trains, from out/rl.part

The page needs no network; report.html is its template. It shows accuracies, verdicts against the
rule, attempts by level, curves, and at most 300 graded transcripts of a folder. jinja2 escapes all
text of questions and models. samples.jsonl is left out.
"""
import collections
import dataclasses
import math
from pathlib import Path

import jinja2

from nanoverify.evaluate import COLUMNS, by, cell, metrics
from nanoverify.problems import Problem
from nanoverify.support.alarms import of_data, of_run
from nanoverify.support.files import InputError, read_json, read_jsonl, run
from nanoverify.support.flags import Parser
from nanoverify.trajectory import OPENING, Action, Trajectory

TRANSCRIPTS = {"trajectories.jsonl": "composed for SFT",
               "responses.jsonl": "answers to the evaluation",
               "rollouts.jsonl": "rollout of the last step"}
LABELS = ("wrong → right", "right → wrong", "false alarm", "missed error")
MOST, MOST_CHARACTERS = 300, 500_000  # transcripts of a folder, and their text
MOST_POINTS = 500  # of a curve

# metrics.jsonl: names that `metrics` in evaluate.py does not define. A test compares these texts
# with docs/metrics.md.
GLOSSARY = {
    "reward": "mean outcome reward of the rollout, between -1 and +1",
    "groups_without_spread":
        "share of questions whose samples all got the same outcome: no outcome signal",
    "approx_kl":
        "mean of r - 1 - log r, log r clamped to -1..1, over responses with an advantage: how far "
        "the update moved from the rollout policy (arm offline: from the SFT model)",
    "clipped_low, clipped_high":
        "share of tokens, of responses with an advantage, whose gradient the clip cut off",
    "ratio_min, ratio_max": "extremes of r over all minibatches",
    "mismatch":
        "mean absolute log r before the first update of the rollout: sampler and trainer have the "
        "same weights there and differ by rounding (arm offline: and by all updates before)",
    "entropy":
        "mean of -log p of the sampled tokens, an unbiased estimate of the entropy of the next "
        "token, at the rollout temperature",
    "kl_to_reference": "mean log-prob minus the SFT model's (not with --beta 0)",
    "advantage_abs": "mean absolute advantage of the response tokens, before they are normalised",
    "value_loss, explained_variance": "of the value head, over actions (only with --advantage gae)",
    "grad_norm, lr, tokens, longest":
        "before clipping at 1; learning rate; response tokens; longest response",
    "seconds_rollout, seconds_score, seconds_update":
        "where the time goes: sampling; reference log-probs and values; PPO",
    "loss, kl":
        "SFT: cross-entropy of the learned tokens; their KL from the base model (only with --kl)",
    "epoch, learned_tokens, seconds":
        "SFT: passes over the data; tokens the loss mask selects; duration of the step",
    "count": "responses the metrics are taken of",
}




def definitions() -> dict[str, str]:
    """{name: meaning}, from the docstring of `metrics` and from GLOSSARY."""
    lines = [line.strip().split("  ", 1) for line in metrics.__doc__.splitlines()]
    entries = [line for line in lines if len(line) == 2] + list(GLOSSARY.items())
    return {name: meaning.strip() for names, meaning in entries for name in names.split(", ")}


# ---- reading an output folder --------------------------------------------------------------------

def read_run(path: str) -> dict:
    """The content of an output folder. A run that is being written is in `path`.part
    (files.output_folder).
    """
    # 1. the folder and its files
    folders = (Path(f"{Path(path)}.part"), Path(path))
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise InputError(f"{path}: no such folder")
    names = [name for name in ("evaluation.json", "metrics.jsonl", *TRANSCRIPTS)
             if (folder / name).exists()]
    if not names:
        raise InputError(f"{path}: holds no evaluation.json, metrics.jsonl or "
                         f"{', '.join(TRANSCRIPTS)}; give an output folder of the three scripts")
    running = folder.suffix == ".part"

    # 2. evaluations and metrics
    columns, lines = {}, []
    if "evaluation.json" in names:
        columns = read_json(folder / "evaluation.json").get("columns")
    if not isinstance(columns, dict) or not all(map(is_evaluation, columns.values())):
        raise InputError(f"{folder}/evaluation.json: not an evaluation of this version")
    if "metrics.jsonl" in names:
        lines = [line for _, line in read_jsonl(folder / "metrics.jsonl", growing=running)]
    if not all("step" in line for line in lines):
        raise InputError(f"{folder}/metrics.jsonl: a line without a step")
    alarms = of_run(lines)
    if (folder / "statistics.json").exists():
        try:
            alarms += of_data(read_json(folder / "statistics.json"))
        except (KeyError, TypeError, AttributeError, ValueError):
            raise InputError(f"{folder}/statistics.json: not that of this version")

    # 3. transcripts
    sets = [{"name": f"{path}: {title}", **read_set(folder / name, running)}
            for name, title in TRANSCRIPTS.items() if name in names]
    return {"path": path, "running": running, "lines": lines, "alarms": alarms, "columns": columns,
            "sets": sets}


def is_evaluation(values) -> bool:
    return isinstance(values, dict) and {"count", "by_level", *COLUMNS} <= values.keys()


def read_set(path: Path, growing: bool = False) -> dict:
    """One file of graded responses, as trajectory.as_row writes them."""
    items = []
    for number, row in read_jsonl(path, growing):
        try:
            t = trajectory_of(row)
            items.append({"row": row, "t": t, "labels": labels(t), "spans": spans(row, t)})
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path}:{number}: not a graded response of this version: "
                             f"{type(error).__name__} {error}")
    return {"file": path.name, "all": items, "confusion": confusion([item["t"] for item in items])}


def trajectory_of(row: dict) -> Trajectory:
    """The trajectory of a row. The row has the number of its ids, not the ids."""
    def made(kind, values):
        return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
    problem = made(Problem, row)
    actions = [made(Action, action) for action in row["actions"]]
    return Trajectory(problem, range(actions[-1].stop), row["finished"], actions)


# ---- what the page shows -------------------------------------------------------------------------

def confusion(trajectories: list[Trajectory]) -> collections.Counter:
    """{(whether the solve is right, verdict): number of verifications}"""
    return collections.Counter((action.right, action.verdict)
                               for t in trajectories for action in t.verifies)


def labels(t: Trajectory) -> list[str]:
    """Those of LABELS that hold. False alarm: a right solve called incorrect; missed error: a wrong
    one called correct.
    """
    first, last, counts = t.solves[0].right, t.solves[-1].right, confusion([t])
    holds = (last and not first, first and not last, counts[True, False], counts[False, True])
    return [label for label, held in zip(LABELS, holds) if held]


def spans(row: dict, t: Trajectory) -> list[dict]:
    """The actions of a row with their text. said: the verdict on this solve, or of this verify."""
    starts = [match.start() for match in OPENING.finditer(row["response"])]
    cuts = [0, *starts, len(row["response"])]
    result = []
    for number, (raw, action) in enumerate(zip(row["actions"], t.actions)):
        if number + 1 >= len(cuts):
            break
        following = t.actions[number + 1] if number + 1 < len(t.actions) else None
        judge = action if action.kind == "verify" else following
        verdict = judge.verdict if judge and judge.kind == "verify" else None
        text = row["response"][cuts[number]:cuts[number + 1]].strip()
        result.append({**raw, "said": verdict, "tokens": raw["stop"] - raw["start"], "text": text})
    return result


def choose(items: list[dict], most: int, characters: int) -> list[dict]:
    """At most `most` items with about `characters` characters, in the file's order. Each
    combination of labels gives the same number as long as it has items, so that rare ones are
    shown.
    """
    total = sum(len(item["row"]["response"]) for item in items)
    most = min(most, characters * len(items) // max(total, 1))
    alike = collections.defaultdict(list)
    for i, item in enumerate(items):
        alike[tuple(item["labels"])].append(i)
    ranked = sorted((rank, i) for places in alike.values() for rank, i in enumerate(places))
    return [items[i] for i in sorted(i for _, i in ranked[:most])]


def merged_columns(runs: list[dict]) -> dict[str, dict]:
    """The evaluations of all runs. Later stages repeat the earlier ones; if they differ, the folder
    is named.
    """
    columns = {}
    for each in runs:
        for name, values in each["columns"].items():
            same = columns.get(name, values) == values
            columns[name if same else f"{name} ({each['path']})"] = values
    return columns


def attempts_by_level(columns: dict, sets: list[dict]) -> dict[str, dict]:
    """{stage: {level: metrics}}. responses.jsonl is left out: a column has its metrics."""
    stages = {name: values["by_level"] for name, values in columns.items()}
    for each in sets:
        if each["file"] != "responses.jsonl":
            stages[each["name"]] = by([item["t"] for item in each["all"]], "level")
    return {name: levels for name, levels in stages.items() if levels}


def curves(lines: list[dict]) -> list[dict]:
    """Every number of metrics.jsonl over the steps, on a field of 200 x 60 pixels. Evaluations
    during the training are called "eval ...".
    """
    every = max(1, -(-len(lines) // MOST_POINTS))
    values = collections.defaultdict(list)  # {name: [(step, value)]}
    for line in lines[(len(lines) - 1) % every::every]:  # with the last step
        evaluated = {f"eval {name}": value for name, value in line.get("eval", {}).items()}
        for name, value in {**line, **evaluated}.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                values[name].append((line["step"], value))
    known = definitions()
    return [{"meaning": known.get(name.removeprefix("eval "), ""), **curve(name, pairs)}
            for name, pairs in values.items()]


def curve(name: str, pairs: list[tuple[int, float]]) -> dict:
    """pairs: (step, value)"""
    steps, numbers = zip(*pairs)
    xs, ys = scaled(steps, 200), scaled(numbers, 60)
    points = [(round(x, 1), round(60 - y, 1)) for x, y in zip(xs, ys)]
    return {"name": name, "steps": steps, "numbers": numbers, "points": points}


def scaled(values, size: int) -> list[float]:
    """The values on an axis of `size` pixels with a margin of 2; in the middle if all are equal."""
    low, high = min(values), max(values)
    return [2 + (size - 4) * ((value - low) / (high - low) if high > low else 0.5)
            for value in values]


def page(runs: list[dict]) -> str:
    """The whole page as text."""
    # 1. the transcripts on the page, and what they can be filtered by
    sets = [each for one in runs for each in one["sets"]]
    for one in runs:
        count = len(one["sets"])
        for each in one["sets"]:
            each["shown"] = choose(each["all"], MOST // count, MOST_CHARACTERS // count)
    problems = [item["t"].problem for each in sets for item in each["shown"]]
    levels = by_length(str(problem.level) for problem in problems)
    families = sorted({str(problem.family) for problem in problems})
    filters = [("from", "all files", [(n, each["name"]) for n, each in enumerate(sets, 1)]),
               ("label", "any course", [(label, label) for label in LABELS]),
               ("level", "any level", [(level, f"level {level}") for level in levels]),
               ("family", "any family", [(family, family) for family in families])]

    # 2. the tables
    columns = merged_columns(runs)
    attempts = attempts_by_level(columns, sets)
    attempt_levels = by_length(level for levels in attempts.values() for level in levels)

    # 3. the template
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        runs=runs, sets=sets, columns=columns, rows=COLUMNS, cell=cell, definitions=definitions(),
        filters=filters, attempts=attempts, attempt_levels=attempt_levels,
        curves={each["path"]: curves(each["lines"]) for each in runs})


def by_length(names) -> list[str]:
    """Sorted, 2 before 10."""
    return sorted(set(names), key=lambda name: (len(name), name))


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="output folder of one of the three scripts, finished or not")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="default: %(default)s")
    args = parser.parse_args(argv)
    text = page([read_run(path) for path in args.runs])
    try:
        Path(args.out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {args.out}: cannot be written: {error.strerror}")
    print(f"-> {args.out} ({len(text.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main)
