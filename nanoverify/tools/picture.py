"""One self-correction as a picture: the one at the top of the README.

    python -m nanoverify.tools.picture out/rl --out correction.svg    # from its evaluation

It shows the shortest response that rejects a wrong answer and then gives the right one, with at
least --attempts attempts. Checks are blue; a rejected solution is red and struck through, the
accepted one green.
"""
import html
import textwrap
from pathlib import Path

from nanoverify.evaluate import correction
from nanoverify.support.files import InputError, run, writing
from nanoverify.support.flags import Parser
from nanoverify.tools.report import read_set

WIDTH, LINE, CHARACTERS = 820, 21, 92  # of the picture, of a line, in pixels; letters of a line
COLOURS = {"question": "#24292f", "phrase": "#8a8f98", "verify": "#0969da",
           "rejected": "#cf222e", "accepted": "#1a7f37"}
LOOKS = {"question": ' font-weight="bold"', "phrase": ' font-style="italic"',
         "rejected": ' text-decoration="line-through"'}


def pick(items: list[dict], attempts: int) -> dict | None:
    """The row of the shortest correction without an empty action; items: of report.read_set."""
    fit = [item for item in items if len(item["t"].solves) >= attempts
           and all(action.text for action in item["t"].actions)]
    best = correction([item["t"] for item in fit])
    return next((item["row"] for item in fit if item["t"] is best), None)


def pieces(row: dict):
    """(style, text) of the question and of each phrase and action, in order."""
    yield "question", row["question"]
    rest = row["response"]
    for number, action in enumerate(row["actions"]):
        phrase, _, rest = rest.partition(action["text"])
        if phrase.strip():
            yield "phrase", phrase.strip()
        if action["kind"] == "verify":
            yield "verify", action["text"]
        else:
            accepted = row["actions"][number + 1]["verdict"]
            yield "accepted" if accepted else "rejected", action["text"]


def svg(row: dict) -> str:
    """One line of text below the other; an empty one after the question and after each action."""
    lines = []
    for style, text in pieces(row):
        lines += [(style, line) for line in textwrap.wrap(text, CHARACTERS)]
        if style != "phrase":
            lines.append((style, ""))
    del lines[-1]
    texts = []
    for number, (style, line) in enumerate(lines):
        if line:
            texts.append(f'<text x="20" y="{32 + LINE * number}" fill="{COLOURS[style]}"'
                         f'{LOOKS.get(style, "")}>{html.escape(line)}</text>')
    height = LINE * len(lines) + 40
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="ui-monospace, monospace" '
            'font-size="14">\n'
            '<rect width="100%" height="100%" rx="8" fill="#f6f8fa" stroke="#d0d7de"/>\n'
            + "\n".join(texts) + "\n</svg>\n")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="output folder of train_sft.py or train_rl.py")
    parser.add_argument("--attempts", type=int, default=2,
                        help="fewest solutions (default: %(default)s)")
    parser.add_argument("--out", default="correction.svg", metavar="FILE",
                        help="default: %(default)s")
    args = parser.parse_args(argv)
    row = pick(read_set(Path(args.run) / "responses.jsonl")["all"], args.attempts)
    if row is None:
        raise InputError(f"{args.run}/responses.jsonl: no response corrects itself in "
                         f"{args.attempts} attempts or more")
    with writing(args.out):
        Path(args.out).write_text(svg(row), encoding="utf-8")
    print(f"-> {args.out}")


if __name__ == "__main__":
    run(main)
