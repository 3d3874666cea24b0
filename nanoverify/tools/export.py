"""Export to distributed trainers: files that they read, and our rewards in the forms they call.

    python -m nanoverify.export      # out/data -> handover/questions.jsonl, handover/sft.jsonl

questions.jsonl   one file for TRL (prompt, answer), verl (prompt, reward_model, data_source) and
                  OpenRLHF (--input_key prompt --label_key answer --apply_chat_template)
sft.jsonl         trajectories as token ids with their loss mask: input_ids, labels (-100: not
                  learned); for TRL and transformers only. The SFT of verl 0.9.1 and OpenRLHF 0.11.2
                  takes messages or text and learns every token of the assistant, also of wrong
                  solutions: do SFT here or with TRL, and give them the checkpoint

Rewards: TRL calls `outcome_rewards` and `process_rewards`, verl `compute_score`, OpenRLHF
`reward_func`. All of them take ONE number per response. The outcome reward is one. The process
reward becomes its mean over the actions: the action that earned it is lost, and so are the reward
contexts.
"""
import re

from nanoverify import ppo
from nanoverify.problems import SOLVE_PROMPT, Problem
from nanoverify.support.files import (
    InputError,
    output_folder,
    read_jsonl,
    run,
    write_json,
    write_jsonl,
)
from nanoverify.support.flags import Parser, positive
from nanoverify.trajectory import parse, training_ids

END = re.compile(r"(?:\s*<[|/\w]+>)+\s*$")  # <|im_end|>, </s>: end tokens that an engine leaves


class Characters:
    """A tokenizer whose tokens are characters: `parse` reads text with it."""
    @staticmethod
    def decode(ids):
        return "".join(ids)


def trajectory_of(response: str, gold: str):
    """The Trajectory of a response given as text, which counts as finished."""
    problem = Problem("", "", str(gold), "", None)
    return parse(problem, list(END.sub("", response)), True, Characters)


def outcome_reward(response: str, gold: str) -> float:
    """+1 if the last solve is right, else -1."""
    return ppo.outcome_reward(trajectory_of(response, gold))


def process_reward(response: str, gold: str) -> float:
    """Mean of the rewards of all actions, -1 to +1."""
    rewards = ppo.action_rewards(trajectory_of(response, gold))
    return sum(rewards) / len(rewards)


def text_of(completion) -> str:
    """TRL gives a string, or messages if the prompt has messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def outcome_rewards(completions, answer, **others) -> list[float]:
    """For TRL's `reward_funcs` (GRPOTrainer, RLOOTrainer)."""
    return [outcome_reward(text_of(completion), gold)
            for completion, gold in zip(completions, answer)]


def process_rewards(completions, answer, **others) -> list[float]:
    """For TRL's `reward_funcs`; TRL adds it to the others by `reward_weights`."""
    return [process_reward(text_of(completion), gold)
            for completion, gold in zip(completions, answer)]


def compute_score(data_source, solution_str, ground_truth, extra_info=None) -> dict:
    """For verl's custom_reward_function; `score` is the reward, the rest is logged."""
    outcome = outcome_reward(solution_str, ground_truth)
    process = process_reward(solution_str, ground_truth)
    return {"score": outcome + process, "outcome": outcome, "process": process}


def response_in(query: str, prompt: str) -> str:
    """The text after the prompt in `query`. OpenRLHF cuts the beginning of a prompt that is too
    long.
    """
    return next(query[len(prompt) - cut:] for cut in range(len(prompt) + 1)
                if query.startswith(prompt[cut:]))


def reward_func(queries, prompts, labels, **others) -> dict:
    """For OpenRLHF's --reward.remote_url FILE.py. A query is a prompt followed by a response."""
    import torch
    responses = map(response_in, queries, prompts)
    pairs = list(zip(responses, labels))
    outcome = torch.tensor([outcome_reward(*pair) for pair in pairs])
    process = torch.tensor([process_reward(*pair) for pair in pairs])
    return {"rewards": outcome + process, "scores": (outcome + 1) / 2,
            "extra_logs": {"outcome": outcome, "process": process}}


def question_row(problem: Problem) -> dict:
    """A line of questions.jsonl."""
    message = {"role": "user", "content": SOLVE_PROMPT.format(question=problem.question)}
    return {"prompt": [message], "answer": problem.answer,
            "data_source": "nanoverify", "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"id": problem.id, "family": problem.family, "level": problem.level}}


def sft_row(row: dict, tokenizer) -> dict:
    """A line of trajectories.jsonl as the ids and labels that train_sft.py trains on."""
    prompt, ids, mask = training_ids(row, tokenizer)
    labels = [token if learned else -100 for token, learned in zip(ids, mask)]
    return {"input_ids": prompt + ids, "labels": [-100] * len(prompt) + labels}


def main(argv=None):
    from nanoverify.support.stage import add_model_flags, add_question_flags, train_problems
    from nanoverify.tokenizer import Tokenizer
    parser = Parser(__doc__)
    parser.add_argument("--data", default="out/data/trajectories.jsonl", metavar="FILE",
                        help="from stage 0 (default: %(default)s)")
    parser.add_argument("--out", default="handover", help="folder (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    parser.add_argument("--count", type=positive, default=6000,
                        help="questions (default: %(default)s)")
    add_model_flags(parser)
    add_question_flags(parser)
    args = parser.parse_args(argv)
    tokenizer = Tokenizer.load(args.model)
    with output_folder(args.out, overwrite=args.overwrite) as folder:
        rows = []
        for number, row in read_jsonl(args.data):
            texts = (row.get(key) for key in ("id", "question", "answer", "response"))
            if not all(isinstance(text, str) for text in texts):
                raise InputError(f"{args.data}:{number}: no text in id, question, answer "
                                 "or response")
            rows.append(sft_row(row, tokenizer))
        if not rows:
            raise InputError(f"{args.data}: no trajectory in it")
        questions = train_problems(args, args.count)
        write_jsonl(folder / "sft.jsonl", rows)
        write_jsonl(folder / "questions.jsonl", map(question_row, questions))
        write_json(folder / "arguments.json", vars(args))
    print(f"{len(rows)} trajectories, {len(questions)} questions -> {args.out}")


if __name__ == "__main__":
    run(main)
