"""Progress of long work: a bar in a terminal; where stderr is a file, one plain line a minute."""
import contextlib
import sys
import time

from tqdm import tqdm

MINUTE = 60  # seconds between two lines
PLAIN = "{desc}: {n_fmt} of {total_fmt}, {elapsed} since the start, {remaining} left{postfix}"


class Lines:
    """Takes the place of the file into which tqdm writes, and passes on a line a minute."""

    def __init__(self):
        self.last = time.monotonic()

    def write(self, text: str):
        # tqdm begins a bar with \r; the rest moves the cursor or is a bar that goes away
        if text.startswith("\r") and text.strip() and time.monotonic() - self.last >= MINUTE:
            self.last = time.monotonic()
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self):
        pass


LINES = Lines()  # one for all bars, so that many short ones are heard of, too


def bar(items=None, **more) -> tqdm:
    """tqdm(items, **more)"""
    if not sys.stderr.isatty():
        more |= {"file": LINES, "bar_format": PLAIN, "mininterval": 1}
    return tqdm(items, **more)


@contextlib.contextmanager
def waiting(what: str):
    """While this runs, a terminal says what it waits for. Also a decorator."""
    shown = sys.stderr.isatty()
    print(f"{what} ..." * shown, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\033[K" * shown, end="", file=sys.stderr, flush=True)


def say(text: str):
    """A line on stderr that is not glued to a bar."""
    tqdm.write(text, file=sys.stderr)
