"""The bounds of the work on one answer, and the errors beyond them."""

MAX_RESPONSE, MAX_VERIFICATION = 10_000, 4_000  # characters; of a longer text the end is searched
MAX_ANSWER, MAX_TOKENS = 2_000, 300  # of one answer; its tree cannot be deeper than its tokens
MAX_ITEMS = 64  # elements of a list in any order
MAX_BITS = 20_000  # of an exact number; larger ones become decimals
MAX_STEPS = 6_000  # operations in one comparison
MAX_FACTORIAL = 2_500
MAX_TERMS = 1_000  # of a sum or product
MAX_MATRIX = 6  # rows of a product of matrices
MAX_MENTIONS = 100  # of "answer": the last ones are tried
MAX_WORDS = 2  # beside each element of an answer; more are prose


class Unreadable(ValueError):
    """This text, or this number, is beyond the grammar or the limits."""


class Exhausted(Unreadable):
    """It takes more than MAX_STEPS."""
