"""Beside the path: ask a model one question and watch it solve, check and try again.

    python -m nanoverify.ask --model out/rl "27 increased by 2 times a number is 39. What is the number?"
    python -m nanoverify.ask --model out/rl --gold 6 "27 increased by ..."     # the rule's verdict beside the model's own
    python -m nanoverify.ask --model out/rl                                    # asks for questions until an empty line

Checks are blue; behind each verdict stands the answer, green if accepted, red and struck if rejected. Plain text where
the output is no terminal.
"""
import argparse
import sys

import torch

from nanoverify.files import InputError, run
from nanoverify.kernels import autocast
from nanoverify.problems import SOLVE_PROMPT, Problem
from nanoverify.decoding import decode, fuse
from nanoverify.sampler import next_token, prefill, uniform
from nanoverify.stage import add_model_flags, load
from nanoverify.trajectory import parse
from nanoverify.verifier import VERDICTS

BLUE, GREEN, RED, PLAIN = "\033[34m", "\033[32m", "\033[31;9m", "\033[0m"


@torch.inference_mode()
def stream(model, tokenizer, prompt: list[int], max_new_tokens: int, temperature: float, seed: int):
    """Yield the ids of one response as they are drawn."""
    context, device = model.config.max_position_embeddings, model.lm_head.weight.device
    if len(prompt) >= context:
        raise InputError(f"the question has {len(prompt)} tokens; the model's context is {context}")
    numbers = uniform(seed, 0, 1, min(max_new_tokens, context - len(prompt)))[0].to(device)
    fused, (cache, logits) = fuse(model, tokenizer.vocab_size), prefill(model, [prompt], tokenizer.vocab_size)
    for u in numbers:
        ids, _ = next_token(logits, temperature, 0, 1.0, u[None])
        yield ids.item()
        if ids.item() in tokenizer.stop_ids:
            return
        cache.reserve(1)
        logits = decode(fused, ids, cache)


def show(tokenizer, problem: Problem, ids, write, colour: bool):
    """Write a response while it comes; `ids` is an iterable of token ids. -> its Trajectory."""
    paint = (lambda text, code: f"{code}{text}{PLAIN}") if colour else (lambda text, code: text)
    kept, shown, judged = [], 0, 0

    def judge(actions):
        nonlocal judged
        for solve, verify in list(zip(actions[::2], actions[1::2]))[judged:]:
            judged += 1
            said = {True: "accepted", False: "rejected", None: "no verdict"}[verify.verdict]
            rule = f"; the rule says {'right' if solve.right else 'wrong'}" if problem.answer else ""
            write(paint(f" [{said}: {solve.answer or 'no answer'}{rule}]", GREEN if verify.verdict else RED))

    for id in ids:
        kept.append(id)
        trajectory = parse(problem, kept, id in tokenizer.stop_ids, tokenizer)
        text = tokenizer.decode(kept)
        if not text.endswith("\ufffd"):  # a character cut in the middle waits for its other bytes
            write(paint(text[shown:], BLUE) if trajectory.actions[-1].kind == "verify" else text[shown:])
            shown = len(text)
        if trajectory.actions[-1].text.endswith(tuple(VERDICTS.values())):
            judge(trajectory.actions)
    judge(trajectory.actions)
    write("\n" if trajectory.finished else "\n(cut by --max-new-tokens)\n")
    return trajectory


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", help="left out: asked for on standard input, until an empty line")
    add_model_flags(parser, default="out/rl")
    parser.add_argument("--gold", default="", metavar="ANSWER", help="the right answer, if you want the rule's verdict too")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    args = parser.parse_args(argv)
    model, tokenizer = load(args)
    write = lambda text: print(text, end="", flush=True)
    question = args.question
    while question or (args.question is None and (question := ask_line())):
        problem = Problem("asked", question, args.gold, "asked", None)
        prompt = tokenizer.prompt(SOLVE_PROMPT.format(question=question))
        with autocast(args.device):
            show(tokenizer, problem, stream(model, tokenizer, prompt, args.max_new_tokens, args.temperature, args.seed), write, sys.stdout.isatty())
        question = None


def ask_line() -> str:
    try:
        return input("question: " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    run(main)
