"""Beside the path: one HTML page that shows what a run did, from the output folders of the three scripts.

    python -m nanoverify.report out/data out/sft out/rl           # -> report.html, open it in any browser
    python -m nanoverify.report out/rl --out now.html             # while it trains: out/rl.part is read

The page (report.html is its template) needs no network: accuracies, verdicts against the rule, attempts by level, curves, and at
most 300 graded transcripts of a folder. jinja2 escapes all text of questions and models. samples.jsonl is left out.
"""
import argparse
import collections
import dataclasses
import math
from pathlib import Path

import jinja2

from nanoverify.evaluate import COLUMNS, by, cell, metrics
from nanoverify.files import InputError, read_json, read_jsonl, run
from nanoverify.problems import Problem
from nanoverify.trajectory import OPENING, Action, Trajectory

TRANSCRIPTS = {"trajectories.jsonl": "composed for SFT", "responses.jsonl": "answers to the evaluation, greedy", "rollouts.jsonl": "rollout of the last step"}
LABELS = ("wrong → right", "right → wrong", "false alarm", "missed error")
MOST, MOST_CHARACTERS, MOST_POINTS = 300, 500_000, 500  # transcripts of a folder, their text, points of a curve

# metrics.jsonl: what `metrics` in evaluate.py does not define (a test keeps these words and docs/metrics.md's the same)
GLOSSARY = {
    "reward": "mean outcome reward of the rollout, between -1 and +1",
    "groups_without_spread": "share of questions whose samples all got the same outcome: no outcome signal",
    "approx_kl": "mean of r - 1 - log r, log r clamped to -1..1, over responses with an advantage: how far the update moved from the rollout policy (with --offline: from the SFT model)",
    "clipped_low, clipped_high": "share of tokens, of responses with an advantage, whose gradient the clip cut off",
    "ratio_min, ratio_max": "extremes of r over all minibatches",
    "mismatch": "mean absolute log r before the first update of the rollout: sampler and trainer have the same weights there and differ by rounding (with --offline: and by all updates before)",
    "entropy": "mean of -log p of the sampled tokens, an unbiased estimate of the entropy of the next token, at the rollout temperature",
    "kl_to_reference": "mean log-prob minus the SFT model's (only with --beta)",
    "advantage_abs": "mean absolute advantage of the response tokens, before they are normalised",
    "value_loss, explained_variance": "of the value head, over actions (only with --advantage gae)",
    "grad_norm, lr, tokens, longest": "before clipping at 1; learning rate; response tokens; longest response",
    "seconds_rollout, seconds_score, seconds_update": "where the time goes: sampling; reference log-probs and values; PPO",
    "loss, kl": "SFT: cross-entropy of the learned tokens; their KL from the base model (only with --kl)",
    "epoch, learned_tokens, seconds": "SFT: passes over the data; tokens the loss mask selects; duration of the step",
    "count": "responses the metrics are taken of",
}


def definitions() -> dict[str, str]:
    """name -> meaning, from the docstring of `metrics` and from GLOSSARY."""
    lines = [line.strip().split("  ", 1) for line in metrics.__doc__.splitlines()]
    entries = [line for line in lines if len(line) == 2] + list(GLOSSARY.items())
    return {name: meaning.strip() for names, meaning in entries for name in names.split(", ")}


# ---- reading: an output folder -> a dict of plain things --------------------------------------------------------------

def read_run(path: str) -> dict:
    """What an output folder holds; while a run writes it, it lies beside, as .part (files.output_folder)."""
    folder = next((folder for folder in (Path(f"{Path(path)}.part"), Path(path)) if folder.is_dir()), None)
    if folder is None:
        raise InputError(f"{path}: no such folder")
    there = [name for name in ("evaluation.json", "metrics.jsonl", *TRANSCRIPTS) if (folder / name).exists()]
    if not there:
        raise InputError(f"{path}: holds no evaluation.json, metrics.jsonl or {', '.join(TRANSCRIPTS)}; give an output folder of the three scripts")
    running = folder.suffix == ".part"
    lines = [line for _, line in read_jsonl(folder / "metrics.jsonl", growing=running)] if "metrics.jsonl" in there else []
    columns = read_json(folder / "evaluation.json").get("columns") if "evaluation.json" in there else {}
    if not isinstance(columns, dict) or not all(isinstance(values, dict) and {"count", "by_level", *COLUMNS} <= values.keys() for values in columns.values()):
        raise InputError(f"{folder}/evaluation.json: not an evaluation of this version")
    if not all("step" in line for line in lines):
        raise InputError(f"{folder}/metrics.jsonl: a line without a step")
    return {"path": path, "running": running, "lines": lines, "columns": columns,
            "sets": [{"name": f"{path}: {TRANSCRIPTS[name]}", **read_set(folder / name, running)} for name in TRANSCRIPTS if name in there]}


def read_set(path: Path, growing: bool = False) -> dict:
    """One file of graded responses, as trajectory.as_row made them."""
    items = []
    for number, row in read_jsonl(path, growing):
        try:
            problem, *actions = [kind(**{field.name: found[field.name] for field in dataclasses.fields(kind)})
                                 for kind, found in ((Problem, row), *((Action, action) for action in row["actions"]))]
            t = Trajectory(problem, range(actions[-1].stop), row["finished"], actions)  # of the ids, only the number is known
            items.append({"row": row, "t": t, "labels": labels(t), "spans": spans(row, t)})
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path}:{number}: not a graded response of this version: {type(error).__name__} {error}")
    return {"file": path.name, "all": items, "confusion": confusion([item["t"] for item in items])}


# ---- what the page shows -------------------------------------------------------------------------------------------

def confusion(trajectories: list[Trajectory]) -> collections.Counter:
    """(is the solve before it right?, verdict) -> verifications."""
    return collections.Counter((action.right, action.verdict) for t in trajectories for action in t.verifies)


def labels(t: Trajectory) -> list[str]:
    """Which of LABELS hold. False alarm: a right solve called incorrect; missed error: a wrong one called correct."""
    first, last, said = t.solves[0].right, t.solves[-1].right, confusion([t])
    holds = (last and not first, first and not last, said[True, False], said[False, True])
    return [label for label, held in zip(LABELS, holds) if held]


def spans(row: dict, t: Trajectory) -> list[dict]:
    """The response, cut where its actions begin. said: the verdict on this solve, or of this verify."""
    cuts = [0, *(match.start() for match in OPENING.finditer(row["response"])), len(row["response"])]
    judges = [action if action.kind == "verify" else after if after and after.kind == "verify" else None
              for action, after in zip(t.actions, [*t.actions[1:], None])]
    return [{**raw, "said": judge and judge.verdict, "tokens": raw["stop"] - raw["start"], "text": row["response"][start:stop].strip()}
            for raw, judge, start, stop in zip(row["actions"], judges, cuts, cuts[1:])]


def choose(items: list[dict], most: int, characters: int) -> list[dict]:
    """At most so many, in the file's order: as many with these labels as with those, as far as they reach, so that rare ones are there."""
    most = min(most, characters * len(items) // max(sum(len(item["row"]["response"]) for item in items), 1))
    alike = collections.defaultdict(list)
    for i, item in enumerate(items):
        alike[tuple(item["labels"])].append(i)
    ranked = sorted((rank, i) for found in alike.values() for rank, i in enumerate(found))
    return [items[i] for i in sorted(i for _, i in ranked[:most])]


def merged_columns(runs: list[dict]) -> dict[str, dict]:
    """The evaluations of all runs. Later stages repeat the earlier ones; where they differ, the folder is named."""
    columns = {}
    for found in runs:
        for name, values in found["columns"].items():
            columns[name if columns.get(name, values) == values else f"{name} ({found['path']})"] = values
    return columns


def attempts_by_level(columns: dict, sets: list[dict]) -> dict[str, dict]:
    """{stage: {level: metrics}}; responses.jsonl is what the last column of its folder was measured on."""
    stages = {name: values["by_level"] for name, values in columns.items()}
    stages |= {found["name"]: by([item["t"] for item in found["all"]], "level") for found in sets if found["file"] != "responses.jsonl"}
    return {name: levels for name, levels in stages.items() if levels}


def curves(lines: list[dict]) -> list[dict]:
    """Every number of metrics.jsonl over the steps, on a field of 200 x 60; evaluations on the way as "eval ..."."""
    every, points = max(1, -(-len(lines) // MOST_POINTS)), collections.defaultdict(list)
    for line in lines[(len(lines) - 1) % every::every]:  # the last step is among them
        for name, value in [*line.items(), *((f"eval {key}", value) for key, value in line.get("eval", {}).items())]:
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                points[name].append((line["step"], value))
    known, drawn = definitions(), []
    place = lambda value, values, size: 2 + (size - 4) * ((value - min(values)) / (max(values) - min(values)) if max(values) > min(values) else 0.5)
    for name, found in points.items():
        steps, values = zip(*found)
        drawn.append({"name": name, "meaning": known.get(name.removeprefix("eval "), ""), "steps": steps, "numbers": values,
                      "points": [(round(place(x, steps, 200), 1), round(60 - place(y, values, 60), 1)) for x, y in found]})
    return drawn


def page(runs: list[dict]) -> str:
    """The whole page as text."""
    sets = [found for each in runs for found in each["sets"]]
    for each in runs:
        for found in each["sets"]:
            found["shown"] = choose(found["all"], MOST // len(each["sets"]), MOST_CHARACTERS // len(each["sets"]))
    columns = merged_columns(runs)
    attempts = attempts_by_level(columns, sets)
    tidy = lambda names: sorted(set(names), key=lambda name: (len(name), name))  # 2 before 10
    values = lambda attribute: tidy(str(getattr(item["t"].problem, attribute)) for found in sets for item in found["shown"])
    filters = [("from", "all files", [(number, found["name"]) for number, found in enumerate(sets, 1)]),
               ("label", "any course", [(label, label) for label in LABELS]),
               ("level", "any level", [(level, f"level {level}") for level in values("level")]),
               ("family", "any family", [(family, family) for family in sorted(values("family"))])]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(runs=runs, sets=sets, columns=columns, rows=COLUMNS, cell=cell, definitions=definitions(), filters=filters,
                           attempts=attempts, attempt_levels=tidy(level for found in attempts.values() for level in found),
                           curves={each["path"]: curves(each["lines"]) for each in runs})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of one of the three scripts, finished or not")
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
