"""Beside the path: figures from the study's table.

    python -m nanoverify.figures results/study.csv        # -> accuracy.svg, verification.svg, attempts.svg

A dot is a seed, a line the mean of the seeds.
"""
import argparse
import csv
import html
from pathlib import Path

from nanoverify.files import InputError, run, writing

STAGES = {"base": "#8a8f98", "SFT": "#bf8700", "process": "#8250df", "both": "#1a7f37", "outcome": "#0969da"}  # and their colours
HEIGHT, LEFT, TOP, WIDE = 220, 46, 40, 112  # of the plot, of its margins, and of a group of dots, in pixels
FIGURES = {  # file -> title, stages, {label on the axis: column}, lowest and highest value, are these shares?
    "accuracy": ("First and last answer right", tuple(STAGES), {"first": "first_accuracy", "last": "final_accuracy",
                 **{f"level {level}, last": f"final_accuracy_level_{level}" for level in range(1, 6)}}, (0, 1), True),
    "verification": ("Verification", tuple(STAGES)[1:], {"accuracy": "verification_accuracy", "errors found": "error_recall", "right of accepted": "correct_precision",
                     "TPR": "tpr", "TNR": "tnr", "well-formed": "well_formed"}, (0.4, 1), True),
    "attempts": ("Attempts by level of the question", tuple(STAGES)[1:], {f"level {level}": f"trials_level_{level}" for level in range(1, 6)}, (1, 4), False),
}


def dots(title: str, groups: dict[str, dict[str, list[float]]], low: float, high: float, shares: bool) -> str:
    """An SVG picture. groups: label on the axis -> {stage: a value for each seed}. A value outside low..high is an InputError."""
    stages = list(next(iter(groups.values())))
    y = lambda value: TOP + HEIGHT * (high - value) / (high - low)
    width = LEFT + WIDE * len(groups) + 10
    drawn = [f'<text x="{LEFT}" y="20" font-weight="bold">{html.escape(title)}</text>']
    drawn += [f'<text x="{width - 76 * (len(stages) - i)}" y="20" fill="{STAGES[stage]}">● {stage}</text>' for i, stage in enumerate(stages)]
    for tick in range(5):
        value = low + (high - low) * tick / 4
        drawn.append(f'<path d="M{LEFT} {y(value):.1f}H{width - 10}" stroke="#d0d7de"/><text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">'
                     + (f"{100 * value:.0f}%" if shares else f"{value:.3g}") + "</text>")
    for number, (label, series) in enumerate(groups.items()):
        middle = LEFT + WIDE * (number + 0.5)
        drawn.append(f'<text x="{middle:.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle">{html.escape(label)}</text>')
        for i, (stage, values) in enumerate(series.items()):
            x = middle + 20 * (i - (len(series) - 1) / 2)
            for value in values:
                if not low <= value <= high:
                    raise InputError(f"{title}: {label} of {stage} is {value:.3g}, outside the axis from {low} to {high}")
                drawn.append(f'<circle cx="{x:.1f}" cy="{y(value):.1f}" r="3" fill="{STAGES[stage]}" fill-opacity="0.6"/>')
            if values:
                drawn.append(f'<path d="M{x - 9:.1f} {y(sum(values) / len(values)):.1f}h18" stroke="{STAGES[stage]}" stroke-width="2"/>')
    total = TOP + HEIGHT + 34
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" font-family="system-ui, sans-serif" '
            f'font-size="12" fill="#24292f">\n<rect width="100%" height="100%" rx="8" fill="#f6f8fa"/>\n' + "\n".join(drawn) + "\n</svg>\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="CSV", help="table of nanoverify.study")
    parser.add_argument("--out", default=".", metavar="DIR", help="folder of the pictures (default: here)")
    args = parser.parse_args(argv)
    try:
        with open(args.results, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{args.results}: cannot be read: {error.strerror}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{args.results}: no table of nanoverify.study: {error}")
    drawn = {}
    for name, (title, stages, labels, (low, high), shares) in FIGURES.items():
        try:
            groups = {label: {stage: [float(row[column]) for row in rows if row["arm"] == stage and row[column]] for stage in stages} for label, column in labels.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{args.results}: no table of nanoverify.study: {error}")
        if not any(values for series in groups.values() for values in series.values()):
            raise InputError(f"{args.results}: no table of nanoverify.study: nothing of {', '.join(stages)} in it")
        drawn[Path(args.out) / f"{name}.svg"] = dots(title, groups, low, high, shares)
    for path, svg in drawn.items():
        with writing(path):
            path.write_text(svg, encoding="utf-8")
        print(f"-> {path}")


if __name__ == "__main__":
    run(main)
