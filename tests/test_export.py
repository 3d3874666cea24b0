"""Handing over: rewards from text equal those from ids, in each engine's form; exported labels are
the tokens train_sft.py trains on."""
import json

import pytest
import torch

import train_sft
from nanoverify import ppo
from nanoverify.problems import Problem
from nanoverify.support.files import InputError, read_jsonl, write_jsonl
from nanoverify.support.stage import POLICY
from nanoverify.tokenizer import Tokenizer
from nanoverify.tools import export
from nanoverify.trajectory import RECHECK, RETRY, parse
from nanoverify.verifier import VERDICTS

YES, NO = VERDICTS[True], VERDICTS[False]
RESPONSES = {  # text -> outcome, rewards of the actions
    f"The answer is 6.\n\n{RECHECK}\n\nPut in 6. {YES}": (1, [1, 1]),
    f"The answer is 7.\n\n{RECHECK}\n\n{NO}\n\n{RETRY}\n\nThe answer is 6.\n\n{RECHECK}\n\n{YES}":
        (1, [-1, 1, 1, 1]),
    f"The answer is 7.\n\n{RECHECK}\n\n{YES}": (-1, [-1, -1]),
    f"The answer is 6.\n\n{RECHECK}\n\n{NO}\n\n{RETRY}\n\nThe answer is 5.\n\n{RECHECK}\n\n{NO}":
        (-1, [1, -1, -1, 1]),
    "": (-1, [-1])}


@pytest.mark.parametrize("end",
                         ["", "<|end|>", "<|im_end|>\n", "</s>", "<|eot_id|><|end_of_text|>"])
def test_rewards_from_text(end):
    """Bug: a reward from text differs from the one train_rl.py deals out for the same ids, or an
    engine's end token changes it."""
    tokenizer = Tokenizer.load(POLICY)
    for text, (outcome, actions) in RESPONSES.items():
        same = parse(Problem("", "", "6", "", None), tokenizer.encode(text) + [tokenizer.end_id],
                     True, tokenizer)
        assert ppo.outcome_reward(same) == export.outcome_reward(text + end, "6") == outcome
        assert ppo.action_rewards(same) == actions
        assert export.process_reward(text + end, "6") == sum(actions) / len(actions)


def test_engines_forms():
    """Bug: an engine's call gets the wrong number of rewards, in the wrong order, or of the wrong
    type."""
    texts, outcomes = list(RESPONSES), [float(outcome) for outcome, _ in RESPONSES.values()]
    processes = [sum(actions) / len(actions) for _, actions in RESPONSES.values()]
    golds = ["6"] * len(texts)
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert export.outcome_rewards(completions=texts, answer=golds,
                                  prompts=None) == export.outcome_rewards(chats, golds) == outcomes
    assert export.process_rewards(completions=chats, answer=golds, trainer_state=None) == processes
    for text, outcome, process in zip(texts, outcomes, processes):
        assert export.compute_score("nanoverify", text, "6",
                                    extra_info={}) == {"score": outcome + process,
                                                       "outcome": outcome, "process": process}
    found = export.reward_func([f"<|user|>?{text}<|end|>" for text in texts],
                               ["<|user|>?"] * len(texts), golds)
    assert torch.allclose(found["rewards"], torch.tensor(outcomes) + torch.tensor(processes))
    assert found["scores"].tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("seen", ["<|user|>Add 5, 1.<|assistant|>", "1.<|assistant|>", ""])
def test_a_cut_prompt_takes_nothing_from_the_response(seen):
    """Bug: OpenRLHF cut the front of a long prompt, and as many characters are missing from the
    response, with its answer."""
    texts = list(RESPONSES)
    found = export.reward_func([seen + text + "<|end|>" for text in texts],
                               ["<|user|>Add 5, 1.<|assistant|>"] * len(texts), ["6"] * len(texts))
    assert found["extra_logs"]["outcome"].tolist() == [outcome for outcome, _ in RESPONSES.values()]
    assert found["extra_logs"]["process"].tolist() == [sum(actions) / len(actions)
                                                       for _, actions in RESPONSES.values()]


def test_exported_files(tmp_path, monkeypatch):
    """Bug: an exported row trains other tokens than train_sft.py, or a question lacks its gold
    answer where an engine looks for it."""
    monkeypatch.chdir(tmp_path)
    text = list(RESPONSES)[1]
    write_jsonl("t.jsonl", [{"id": "1", "question": "5 + 1?", "answer": "6", "response": text}])
    export.main(["--data", "t.jsonl", "--count", "3", "--device", "cpu"])
    (_, row), = read_jsonl("handover/sft.jsonl")
    tokenizer = Tokenizer.load(POLICY)
    ((prompt, ids, mask, _),), _ = train_sft.read_rows("t.jsonl", tokenizer, 1024, None)
    assert row["input_ids"] == prompt + ids
    assert row["labels"] == [-100] * len(prompt) + [token if learned else -100
                                                    for token, learned in zip(ids, mask)]
    # the wrong solution is not learned
    assert 0 < sum(label != -100 for label in row["labels"]) < len(ids)
    questions = [json.loads(line) for line in open("handover/questions.jsonl")]
    assert len(questions) == 3
    for question in questions:
        assert question["answer"] == question["reward_model"]["ground_truth"]
        assert question["prompt"][0]["role"] == "user"
    with pytest.raises(InputError, match="--overwrite"):
        export.main(["--data", "t.jsonl", "--count", "2", "--device", "cpu"])
    # an earlier output is left alone until it is asked for
    assert len(list(read_jsonl("handover/questions.jsonl"))) == 3
    export.main(["--data", "t.jsonl", "--count", "2", "--device", "cpu", "--overwrite"])
    assert len(list(read_jsonl("handover/questions.jsonl"))) == 2
