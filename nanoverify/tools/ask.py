"""Ask a model one question and watch it solve, check and try again.

    python -m nanoverify.ask "27 increased by 2 times a number is 39. What is the number?"
    python -m nanoverify.ask --gold 6 "27 increased by ..."    # and what the rule says
    python -m nanoverify.ask                                   # asks for questions

Without --model it is the one in out/rl or, if there is none yet, the trained one that ships with
the code. Checks are blue. After each verdict follows its answer: green if accepted, red and struck
through if rejected. Without a terminal the output is plain text.
"""
import functools
import itertools
import re
import sys

import torch

from nanoverify.problems import SOLVE_PROMPT, Problem
from nanoverify.puzzles import FAMILIES, make_puzzles
from nanoverify.sampler import next_token, prefill, uniform
from nanoverify.support.decoding import decode, fuse
from nanoverify.support.files import InputError, run
from nanoverify.support.flags import Parser, at_least_0
from nanoverify.support.kernels import autocast
from nanoverify.support.stage import (
    POLICY,
    TEST_TEMPERATURE,
    TRAINED,
    add_model_flags,
    latest_model,
    load,
)
from nanoverify.trajectory import parse
from nanoverify.verifier import VERDICTS

BLUE, GREEN, RED, PLAIN = "\033[34m", "\033[32m", "\033[31;9m", "\033[0m"


@torch.inference_mode()
def stream(model, tokenizer, prompt: list[int], max_new_tokens: int, temperature: float, seed: int):
    """Yield the ids of one response as they are sampled."""
    context, device = model.config.max_position_embeddings, model.lm_head.weight.device
    if len(prompt) >= context:
        raise InputError(f"the question has {len(prompt)} tokens; the model's context is {context}")
    numbers = uniform(seed, 0, 1, min(max_new_tokens, context - len(prompt)))[0].to(device)
    fused = fuse(model, tokenizer.vocab_size)
    cache, logits = prefill(model, [prompt], tokenizer.vocab_size)
    for u in numbers:
        ids, _ = next_token(logits, temperature, 0, 1.0, u[None])
        yield ids.item()
        if ids.item() in tokenizer.stop_ids:
            return
        cache.reserve(1)
        logits = decode(fused, ids, cache)


def show(tokenizer, problem: Problem, ids, write, colour: bool):
    """Write a response token by token; returns its Trajectory. ids: an iterable of token ids."""
    def paint(text, code):
        return f"{code}{text}{PLAIN}" if colour else text

    def write_verdicts(actions, start):
        """From number `start` on; returns the number of verdicts."""
        checks = list(zip(actions[::2], actions[1::2]))
        for solve, verify in checks[start:]:
            verdict = {True: "accepted", False: "rejected", None: "no verdict"}[verify.verdict]
            right = "right" if solve.right else "wrong"
            rule = f"; the rule says {right}" if problem.answer else ""
            write(paint(f" [{verdict}: {solve.answer or 'no answer'}{rule}]",
                        GREEN if verify.verdict else RED))
        return len(checks)

    kept, shown, verdicts = [], 0, 0  # ids, characters written, verdicts written
    for id in ids:
        kept.append(id)
        trajectory = parse(problem, kept, id in tokenizer.stop_ids, tokenizer)
        text = tokenizer.decode(kept)
        if not text.endswith("\ufffd"):  # a character cut in the middle waits for its other bytes
            checking = trajectory.actions[-1].kind == "verify"
            write(paint(text[shown:], BLUE) if checking else text[shown:])
            shown = len(text)
        if trajectory.actions[-1].text.endswith(tuple(VERDICTS.values())):
            verdicts = write_verdicts(trajectory.actions, verdicts)
    write_verdicts(trajectory.actions, verdicts)
    write("\n" if trajectory.finished else "\n(cut by --max-new-tokens)\n")
    return trajectory


def is_puzzle(question: str) -> bool:
    """Whether it is worded as a puzzle of the built-in world."""
    wordings = [wording for family in FAMILIES.values() for wording in family.wordings]
    patterns = [re.sub(r"\\{\w+\\}", "[^.?]+", re.escape(wording)) for wording in wordings]
    return any(re.fullmatch(pattern, question) for pattern in patterns)


def questions(question: str | None, gold: str):
    """Yield the problem of this question, or one for each line of standard input.

    In a terminal an empty line takes a test puzzle. Elsewhere it is the end.
    """
    if question is not None:
        yield Problem("asked", question, gold, "asked", None)
        return
    terminal = sys.stdin.isatty()
    invitation = "question (Enter: a puzzle; Ctrl-D: the end): " if terminal else ""
    puzzles = itertools.cycle(make_puzzles("test", 100, seed=2))
    while True:
        try:
            line = input(invitation).strip()
        except EOFError:
            return
        if line:
            yield Problem("asked", line, gold, "asked", None)
        elif terminal:
            problem = next(puzzles)
            print(problem.question)
            yield problem
        else:
            return


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("question", nargs="?", help="without it: lines of standard input")
    add_model_flags(parser, default=latest_model())
    parser.add_argument("--gold", default="", metavar="ANSWER",
                        help="the right answer, to see the rule's verdict as well")
    parser.add_argument("--temperature", type=at_least_0, default=TEST_TEMPERATURE,
                        help="0 is greedy (default: %(default)s)")
    args = parser.parse_args(argv)
    model, tokenizer = load(args)
    write = functools.partial(print, end="", flush=True)
    for problem in questions(args.question, args.gold):
        if args.model in (POLICY, TRAINED) and not is_puzzle(problem.question):
            write("(This model knows only the puzzles of docs/world.md, in their own words.)\n")
        prompt = tokenizer.prompt(SOLVE_PROMPT.format(question=problem.question))
        with autocast(args.device):
            ids = stream(model, tokenizer, prompt, args.max_new_tokens, args.temperature, args.seed)
            show(tokenizer, problem, ids, write, sys.stdout.isatty())


if __name__ == "__main__":
    run(main)
