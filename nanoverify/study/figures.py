"""Figures from the study's table.

    python -m nanoverify.study.figures results/study.csv  # -> accuracy.svg, verification.svg, ...

A dot is a seed, a line the mean of the seeds.
"""
import csv
import html
from pathlib import Path

from nanoverify.support.files import InputError, run, writing
from nanoverify.support.flags import Parser

STAGES = {  # and their colours
    "base": "#8a8f98", "SFT": "#bf8700", "process": "#8250df", "both": "#1a7f37",
    "outcome": "#0969da"}
HEIGHT, LEFT, TOP, WIDE = 220, 46, 40, 112  # plot, its margins, one group of dots; in pixels
LEVELS = range(1, 6)
FIGURES = {  # file: (title, stages, {label on the axis: column}, (lowest, highest value), percent?)
    "accuracy": (
        "First and last answer right", tuple(STAGES),
        {"first": "first_accuracy", "last": "final_accuracy",
         **{f"level {level}, last": f"final_accuracy_level_{level}" for level in LEVELS}},
        (0, 1), True),
    "verification": (
        "Verification", tuple(STAGES)[1:],
        {"accuracy": "verification_accuracy", "errors found": "error_recall",
         "right of accepted": "correct_precision", "TPR": "tpr", "TNR": "tnr",
         "well-formed": "well_formed"},
        (0.4, 1), True),
    "attempts": (
        "Attempts by level of the question", tuple(STAGES)[1:],
        {f"level {level}": f"trials_level_{level}" for level in LEVELS}, (1, 4), False),
}


def dots(title: str, groups: dict[str, dict[str, list[float]]], low: float, high: float,
         percent: bool) -> str:
    """An SVG picture of {label on the axis: {stage: [a value for each seed]}}. InputError: a value
    is outside low..high.
    """
    width, height = LEFT + WIDE * len(groups) + 10, TOP + HEIGHT + 34

    def y(value):
        return TOP + HEIGHT * (high - value) / (high - low)

    # 1. title and legend
    stages = list(next(iter(groups.values())))
    shapes = [f'<text x="{LEFT}" y="20" font-weight="bold">{html.escape(title)}</text>']
    for i, stage in enumerate(stages):
        x = width - 76 * (len(stages) - i)
        shapes.append(f'<text x="{x}" y="20" fill="{STAGES[stage]}">● {stage}</text>')

    # 2. the axis
    for tick in range(5):
        value = low + (high - low) * tick / 4
        text = f"{100 * value:.0f}%" if percent else f"{value:.3g}"
        shapes.append(f'<path d="M{LEFT} {y(value):.1f}H{width - 10}" stroke="#d0d7de"/>'
                      f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">'
                      f'{text}</text>')

    # 3. dots and means
    for number, (label, series) in enumerate(groups.items()):
        middle = LEFT + WIDE * (number + 0.5)
        shapes.append(f'<text x="{middle:.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle">'
                      f'{html.escape(label)}</text>')
        for i, (stage, values) in enumerate(series.items()):
            x, colour = middle + 20 * (i - (len(series) - 1) / 2), STAGES[stage]
            for value in values:
                if not low <= value <= high:
                    raise InputError(f"{title}: {label} of {stage} is {value:.3g}, "
                                     f"outside the axis from {low} to {high}")
                shapes.append(f'<circle cx="{x:.1f}" cy="{y(value):.1f}" r="3" fill="{colour}" '
                              'fill-opacity="0.6"/>')
            if values:
                shapes.append(f'<path d="M{x - 9:.1f} {y(sum(values) / len(values)):.1f}h18" '
                              f'stroke="{colour}" stroke-width="2"/>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="system-ui, sans-serif" '
            'font-size="12" fill="#24292f">\n'
            '<rect width="100%" height="100%" rx="8" fill="#f6f8fa"/>\n'
            + "\n".join(shapes) + "\n</svg>\n")


def grouped(rows: list[dict], stages: tuple[str, ...], labels: dict[str, str]) -> dict:
    """{label: {stage: [a value for each seed]}}; empty cells are left out."""
    return {label: {stage: [float(row[column]) for row in rows
                            if row["arm"] == stage and row[column]] for stage in stages}
            for label, column in labels.items()}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("results", metavar="CSV", help="table of nanoverify.study")
    parser.add_argument("--out", default=".", metavar="DIR",
                        help="folder of the pictures (default: here)")
    args = parser.parse_args(argv)
    try:
        with open(args.results, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{args.results}: cannot be read: {error.strerror}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{args.results}: no table of nanoverify.study: {error}")
    pictures = {}
    for name, (title, stages, labels, (low, high), percent) in FIGURES.items():
        try:
            groups = grouped(rows, stages, labels)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{args.results}: no table of nanoverify.study: {error}")
        if not any(values for series in groups.values() for values in series.values()):
            raise InputError(f"{args.results}: no table of nanoverify.study: "
                             f"nothing of {', '.join(stages)} in it")
        pictures[Path(args.out) / f"{name}.svg"] = dots(title, groups, low, high, percent)
    for path, svg in pictures.items():
        with writing(path):
            path.write_text(svg, encoding="utf-8")
        print(f"-> {path}")


if __name__ == "__main__":
    run(main)
