"""The command line: what a mistake in a flag looks like, and which numbers a flag takes."""
import argparse
import difflib
import math


def number(kind, fits, what: str):
    """A type for argparse: numbers of this kind that fit."""
    def take(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value
    return take


positive = number(int, lambda n: n >= 1, "a whole number of at least 1")
above_0 = number(float, lambda x: 0 < x < math.inf, "a number above 0")
at_least_0 = number(float, lambda x: 0 <= x < math.inf, "a number of at least 0")
from_0_to_1 = number(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")


class Parser(argparse.ArgumentParser):
    """Takes whole flags only. A mistake is one line, which names the flag that was meant."""

    def __init__(self, description, **more):
        usual = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(description=description, **{**usual, **more})

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            near = difflib.get_close_matches(word, self._option_string_actions, 1)
            self.error(f"{word}: there is no such flag"
                       + (f"; did you mean {near[0]}?" if near else "; --help lists them"))
        return args

    def error(self, message):
        self.exit(2, f"error: {message}\n")
