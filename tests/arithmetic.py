"""Arithmetic of its own for the tests of puzzles and lessons."""
import re
from fractions import Fraction


def value(text):
    """What an expression of numbers, + - * / and brackets comes to, by a grammar of its own."""
    def total(parts):
        result, sign = 0, 1
        while True:
            term = atom(parts)
            while parts and parts[0] in "*/":
                term = term * atom(parts) if parts.pop(0) == "*" else Fraction(term, atom(parts))
            result += sign * term
            if not parts or parts[0] == ")":
                return result
            sign = 1 if parts.pop(0) == "+" else -1

    def atom(parts):
        part = parts.pop(0)
        if part == "-":  # a result below 0
            return -atom(parts)
        if part != "(":
            return int(part)
        inside = total(parts)
        assert parts.pop(0) == ")"
        return inside
    return total(re.findall(r"\d+|[()+*/-]", text))


def equations(text):
    return re.findall(r"\d[\d +*/-]* = -?\d+", text)
