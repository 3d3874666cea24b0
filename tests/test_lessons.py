"""What the base learns from: whether solutions and checks are right, by other arithmetic, and that
they do not teach the method."""
import random
import re

import pytest
from arithmetic import equations, value

from nanoverify import lessons
from nanoverify.puzzles import FAMILIES, LEVELS, puzzle
from nanoverify.trajectory import first_step
from nanoverify.verifier import VERDICTS

OFF = re.compile(r"It should be (-?\d+), (?:(\d+) (more|less)|as it is)\.")


@pytest.fixture(scope="module")
def puzzles():
    """[(family, level, numbers, problem)], 60 of each family and level."""
    rng, drawn = random.Random(0), []
    for family in FAMILIES:
        for level in LEVELS:
            for _ in range(60):
                _, numbers, problem = puzzle(rng, family, level)
                drawn.append((family, level, numbers, problem))
    return drawn


def assert_true(text):
    """All equations hold, and each "It should be" says how far off the last result is."""
    for statement in equations(text):
        left, right = statement.split(" = ")
        assert value(left) == value(right), text
    for match in OFF.finditer(text):
        wanted, gap, side = match.groups()
        last = re.findall(r"= (-?\d+)\. It", text[: match.start() + 2])[-1]
        sign = -1 if side == "less" else 1
        assert int(wanted) == int(last) + int(gap or 0) * sign and gap != "0", text


def test_no_list_to_choose_from(puzzles):
    """Bug: a question, a solution or a check lists answers, so that self-correction is
    elimination."""
    for family, _, numbers, problem in puzzles:
        text = problem.question + lessons.check_text(family, numbers, numbers["x"])
        assert not re.search(r"choose|one of|, or ", text, re.IGNORECASE)


def test_checks_say_what_is_so(puzzles):
    """Bug: a worked check miscalculates, passes another number than the answer, or fails the
    answer."""
    rng = random.Random(2)
    for family, level, numbers, problem in puzzles:
        x = numbers["x"]
        for given in (x, *(lessons.near_miss(rng, numbers, level) for _ in range(3))):
            text = lessons.check_text(family, numbers, given)
            assert text.startswith(f"Put in {given}: ") and text.endswith(VERDICTS[given == x])
            assert_true(text)
            assert_true(lessons.check_text(family, numbers, given, lessons.in_brief))
            if given == x and family != "countdown":  # it uses all that the question says
                said = {str(number) for number in numbers.values() if isinstance(number, int)}
                assert said <= set(re.findall(r"\d+", text)), text
            assert ("as it is" in text) == (given == x), f"{problem}: {text}"


def test_failed_checks_say_no_more_than_how_far_off(puzzles):
    """Bug: a check that fails names the answer or narrows it down in words."""
    rng = random.Random(3)
    allowed = (r"It should be -?\d+, \d+ (more|less)\.|\d+ is more than \d+\."
               r"|It should use [\d, and]+\.")
    for family, level, numbers, _ in puzzles:
        text = lessons.check_text(family, numbers, lessons.near_miss(rng, numbers, level))
        last = text.removesuffix(" " + VERDICTS[False]).split(". ")[-1].split(": ")[-1]
        assert re.fullmatch(allowed, last), text


def test_solutions_say_what_is_so(puzzles):
    """Bug: a worked solution miscalculates, begins with a trial that makes no sense (more rabbits
    than heads, the smaller of two numbers), or ends with another number."""
    for family, _, numbers, problem in puzzles:
        trials = [None] if family == "countdown" else FAMILIES[family].trials(numbers)
        assert len(trials) >= 2 or family in ("countdown", "sum_product")
        for trial in trials:
            text = lessons.solve_text(family, numbers, numbers["x"], trial)
            assert_true(text)
            assert text.endswith(f"The answer is {numbers['x']}.") and problem.accepts(text)
            assert family == "countdown" or text.startswith(f"Suppose {trial}. ")
            assert "is more than" not in text
            brief = lessons.solve_text(family, numbers, numbers["x"], trial, lessons.in_brief)
            assert_true(brief)
            assert brief.endswith(f"The answer is {numbers['x']}.")


def test_in_brief():
    """Bug: what is written in brief has other numbers than what is written in full, or no
    comparison."""
    numbers = {"x": 6, "a": 27, "b": 2, "c": 39}
    assert (lessons.solve_text("linear", numbers, 6, 4, lessons.in_brief)
            == "Suppose 4. 27 + 8 = 35. It should be 39, 4 more. The answer is 6.")
    assert (lessons.check_text("linear", numbers, 7, lessons.in_brief)
            == f"Put in 7: 27 + 14 = 41. It should be 39, 2 less. {VERDICTS[False]}")
    nothing = ["9 is more than 7."]
    assert lessons.in_brief(nothing) == nothing
    numbers = {"x": "5 + 3 - 2", "listed": "2, 3 and 5", "target": 6, "numbers": (2, 3, 5)}
    assert lessons.solve_text("countdown", numbers, numbers["x"], None, lessons.in_brief) \
        == "5 + 3 = 8. 8 - 2 = 6. The answer is 5 + 3 - 2."


def test_most_is_written_in_brief():
    """Bug: the shares of brief and of full writing are swapped, or one kind of document has only
    one of them, so that stage 2 cannot find out that full steps are right more often."""
    rng, brief = random.Random(8), {"Suppose": [], "Put in": []}
    for _ in range(3000):
        for said in "".join(text for text, _ in lessons.document(rng)).split("<|assistant|>"):
            opening = next((word for word in brief if said.startswith(word)), None)
            if opening and "It should be" in said:
                brief[opening].append(len(equations(said.split("It should be")[0])) == 1)
    for written in brief.values():
        assert abs(sum(written) / len(written) - lessons.BRIEF) < 0.05


def test_slopes(puzzles):
    """Bug: the last division of a solution does not lead from the trial to the answer."""
    divided = set()
    for family, _, numbers, _ in puzzles:
        if family == "countdown":
            continue
        for trial in FAMILIES[family].trials(numbers):
            text = lessons.solve_text(family, numbers, numbers["x"], trial)
            step = re.search(r"It should be -?\d+, (\d+) (more|less)\. (\d+) / \d+ = (\d+)\.", text)
            if step:
                off, side, dividend, change = step.groups()
                divided.add(family)
                assert off == dividend
                sign = 1 if side == "more" else -1
                assert trial + sign * int(change) == numbers["x"], text
    assert divided == set(FAMILIES) - {"square", "rectangle", "sum_product", "countdown"}


def test_the_next_trial():
    """Bug: a second solution supposes the number that the first one did, or any number, so that the
    base cannot learn to begin anew."""
    numbers = {"x": 6, "a": 27, "b": 2, "c": 39}
    rng = random.Random(0)
    assert {lessons.next_trial(rng, "linear", numbers, []) for _ in range(99)} == {2, 4, 6, 8, 10}
    assert [lessons.next_trial(rng, "linear", numbers, [used]) for used in (2, 8, 10)] == [4, 10, 2]
    assert lessons.next_trial(rng, "linear", numbers, [2, 8]) == 10
    assert lessons.next_trial(rng, "countdown", {}, []) is None


def test_solving_again_says_what_is_so(puzzles):
    """Bug: the verdict of the other style is turned round."""
    rng = random.Random(4)
    for family, level, numbers, _ in puzzles:
        trial = lessons.next_trial(rng, family, numbers, [])
        for given in (numbers["x"], lessons.near_miss(rng, numbers, level)):
            text = lessons.again_text(family, numbers, given, trial)
            assert text.endswith(VERDICTS[given == numbers["x"]])
            assert f"It is {numbers['x']}." in text


def test_near_misses_are_wrong(puzzles):
    """Bug: a wrong answer that the base reads is right, known already, or no number above 0."""
    rng = random.Random(5)
    for family, level, numbers, problem in puzzles:
        known = [lessons.near_miss(rng, numbers, level)]
        known.append(lessons.near_miss(rng, numbers, level, known))
        assert len(set(known)) == 2
        assert not any(problem.accepts(f"The answer is {wrong}.") for wrong in known)
        assert family == "countdown" or min(known) > 0


def test_conversations_do_not_teach_the_method():
    """Bug: the base sees an answer, its check and another answer in one turn, or the phrases of the
    stages in use; it learns a wrong answer; its next answer begins as the one before did. Then the
    stages have nothing to teach, or something to unteach."""
    rng, retries = random.Random(7), 0
    for _ in range(3000):
        pieces = lessons.document(rng)
        text = "".join(piece for piece, _ in pieces)
        if not text.startswith("<|user|>Say: "):
            assert "Wait" not in text and "try again" not in text
        turns = [turn.split("<|end|>")[0] for turn in text.split("<|assistant|>")[1:]]
        for said in turns:
            assert not ("The answer is" in said and "Put in" in said)
        solves = [said for said in turns if "The answer is" in said]
        learned = [learn for piece, learn in pieces
                   if re.search(r"The answer is \S.*?\.<\|end", piece) and "<|user" not in piece]
        assert not any(learned[:-1]) and all(learned[-1:])
        if len(solves) > 1 and solves[0].startswith("Suppose"):
            retries += 1
            assert first_step(solves[0]) != first_step(solves[1])
    assert retries > 200


def test_only_results_of_drills_are_learned():
    """Bug: the base learns to foresee what will be asked."""
    for seed in range(200):
        pieces = lessons.drill(random.Random(seed))
        (asked, no), (result, yes) = pieces
        assert not no and yes and not re.search(r"[+*/-]", result)
        if "The result" not in asked:
            assert_true(asked.strip() + result)
