"""Do the engines' own programs take our exported files? Tried on a CPU.

    python -m nanoverify.export
    python -m nanoverify.bench.handover                    # each engine that is installed
    python -m nanoverify.bench.handover --engines verl

TRL is run: labels of SFTTrainer equal ours; 3 steps of GRPOTrainer with our rewards; transformers
loads both results. verl and OpenRLHF need GPUs to run. Here their own code reads the commands of
docs/outgrow.md and our questions, loads our reward file and rewards prepared responses with it.
Their SFT data sets are shown to refuse sft.jsonl, and to learn more tokens from messages than we
do. verl and OpenRLHF pin different versions of transformers: give each an environment of its own.
pip install -e '.[handover]' installs TRL.
"""
import argparse
import asyncio
import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import runpy
import shlex
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, patch

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanoverify import ppo
from nanoverify.problems import Problem
from nanoverify.support.files import read_jsonl
from nanoverify.support.stage import POLICY
from nanoverify.tokenizer import Tokenizer
from nanoverify.tools.export import outcome_rewards, process_rewards
from nanoverify.trajectory import RECHECK, RETRY, loss_mask, parse
from nanoverify.verifier import VERDICTS

ROOT = Path(__file__).parents[2]
COUNT = 8  # questions whose responses are rewarded


def sft(folder: str, model: str, out: str):
    from trl import SFTConfig, SFTTrainer
    rows = load_dataset("json", data_files=f"{folder}/sft.jsonl", split="train").select(range(32))
    config = SFTConfig(out, max_steps=2, per_device_train_batch_size=4, max_length=None,
                       shuffle_dataset=False, use_cpu=True, bf16=False, report_to=[],
                       save_strategy="no", logging_steps=1, remove_unused_columns=False,
                       dataset_kwargs={"skip_prepare_dataset": True})
    trainer = SFTTrainer(model, args=config, train_dataset=rows)
    learned, left = 0, iter(rows)
    for batch in trainer.get_eval_dataloader(rows):
        # zip takes from the batch first, so no row is lost at its end
        for ids, labels, row in zip(batch["input_ids"], batch["labels"], left):
            n = len(row["input_ids"])
            assert ids[:n].tolist() == row["input_ids"] and labels[:n].tolist() == row["labels"]
            assert (labels[n:] == -100).all()
            learned += sum(label != -100 for label in row["labels"])
    assert next(left, None) is None
    trainer.train()
    trainer.save_model(out)
    losses = [round(row["loss"], 3) for row in trainer.state.log_history if "loss" in row]
    print(f"SFTTrainer: labels of 32 trajectories equal ours ({learned} learned tokens), 2 steps, "
          f"losses {losses}")


def grpo(folder: str, model: str, out: str):
    from trl import GRPOConfig, GRPOTrainer
    questions = load_dataset("json", data_files=f"{folder}/questions.jsonl", split="train")
    config = GRPOConfig(out, max_steps=3, per_device_train_batch_size=8, num_generations=4,
                        max_completion_length=60, use_cpu=True, bf16=False, report_to=[],
                        save_strategy="no", logging_steps=1)
    trainer = GRPOTrainer(model, reward_funcs=[outcome_rewards, process_rewards], args=config,
                          train_dataset=questions)
    trainer.train()
    trainer.save_model(out)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 3
    names = [key for key in logged[0] if key.startswith("rewards/") and key.endswith("mean")]
    means = [{name: round(row[name], 3) for name in names} for row in logged]
    print("GRPOTrainer: 3 steps, rewards", json.dumps(means))


def trl(folder: str, model: str):
    for step in (sft, grpo):
        with tempfile.TemporaryDirectory() as out:
            step(folder, model, out)
            trained = AutoModelForCausalLM.from_pretrained(out)
            tokenizer = AutoTokenizer.from_pretrained(out)
            messages = [{"role": "user", "content": "1 + 1?"}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True,
                                                   return_tensors="pt", return_dict=True)
            with torch.no_grad():
                ids = trained.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
            print("transformers serves it:", repr(tokenizer.decode(ids)))


def command(module: str) -> list[str]:
    """The arguments of the command in docs/outgrow.md: what is said there is what is tried here."""
    text = (ROOT / "docs" / "outgrow.md").read_text(encoding="utf-8").replace("\\\n", " ")
    start = f"python3 -m {module} "
    return shlex.split(next(line for line in text.splitlines() if line.startswith(start)))[3:]


def cases(folder: str, model: str):
    """Responses with what we say about them.

    (question row, prompt ids, response text, response ids, our SFT mask, outcome + process as
    train_rl.py rewards them)
    """
    tokenizer = Tokenizer.load(model)
    for _, row in list(read_jsonl(f"{folder}/questions.jsonl"))[:COUNT]:
        right, wrong = f"The answer is {row['answer']}.", "The answer is 987654."
        yes, no = VERDICTS[True], VERDICTS[False]
        for actions in ([right, RECHECK, yes],
                        [wrong, RECHECK, no, RETRY, right, RECHECK, yes],
                        [wrong, RECHECK, yes],
                        [wrong, RECHECK, no, RETRY, wrong]):
            text = "\n\n".join(actions)
            ids = tokenizer.encode(text) + [tokenizer.end_id]
            trajectory = parse(Problem("", "", row["answer"], "", None), ids, True, tokenizer)
            rewards = ppo.action_rewards(trajectory)
            reward = ppo.outcome_reward(trajectory) + sum(rewards) / len(rewards)
            prompt = tokenizer.prompt(row["prompt"][0]["content"])
            yield row, prompt, text, ids, loss_mask(trajectory), reward


def without_our_mask(name: str, folder: str, model: str, masks_of):
    """An SFT data set refuses our ids and labels; of messages it learns the whole response.

    masks_of: rows -> its loss masks
    """
    try:
        masks_of(load_dataset("json", data_files=f"{folder}/sft.jsonl", split="train")
                 .select(range(COUNT)))
    except KeyError as error:
        print(f"{name} does not take sft.jsonl: it looks for {error}")
    else:
        raise AssertionError(f"{name} takes sft.jsonl after all: say so in docs/outgrow.md")
    rows = list(cases(folder, model))
    messages = [[*row["prompt"], {"role": "assistant", "content": text}]
                for row, _, text, *_ in rows]
    masks = masks_of(Dataset.from_list([{"messages": each} for each in messages]))
    for (_, prompt, _, ids, _, _), mask in zip(rows, masks, strict=True):
        assert mask == [0] * len(prompt) + [1] * len(ids)
    ours = sum(sum(mask) for *_, mask, _ in rows)
    print(f"{name} of messages: learns {sum(map(sum, masks))} tokens of {len(rows)} responses, "
          f"we {ours}")


def verl(folder: str, model: str):
    from hydra import compose, initialize_config_module
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager
    from verl.trainer.ppo.utils import create_rl_dataset, need_critic, need_reference_policy
    from verl.utils import hf_tokenizer
    from verl.utils.config import validate_config
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
    from verl.utils.dataset.rl_dataset import collate_fn
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [
            *command("verl.trainer.main_ppo"), f"data.train_files={folder}/questions.jsonl",
            f"reward.custom_reward_function.path={ROOT}/nanoverify/tools/export.py"])
    validate_config(config, need_reference_policy(config), need_critic(config))
    tokenizer = hf_tokenizer(model)
    dataset = create_rl_dataset(config.data.train_files, config.data, tokenizer, None)
    manager = load_reward_manager(config, tokenizer)
    ours = [row["prompt"] for _, row in read_jsonl(f"{folder}/questions.jsonl")]
    assert [dataset[i]["prompt"] for i in range(len(dataset))] == ours
    rewards = []
    for number, (row, prompt, _, ids, _, expected) in enumerate(cases(folder, model)):
        theirs = dataset[number // 4]
        its_prompt = tokenizer.apply_chat_template(theirs["raw_prompt"], return_dict=False,
                                                   add_generation_prompt=True)
        assert its_prompt == prompt
        padded = {"responses": torch.tensor([ids + [tokenizer.pad_token_id] * 3]),
                  "attention_mask": torch.tensor([[1] * len(prompt + ids) + [0] * 3])}
        data = DataProto.from_single_dict({**collate_fn([theirs]), **padded})
        reward = manager.loop.run_until_complete(manager.run_single(data))["reward_score"]
        assert abs(reward - expected) < 1e-6, (row, reward, expected)
        rewards.append(round(reward, 4))
    print(f"{type(dataset).__name__}: {len(dataset)} questions, prompts are our ids; "
          f"{type(manager).__name__} rewards {len(rewards)} responses as we do: {rewards[:4]}")

    def masks_of(rows):
        with tempfile.TemporaryDirectory() as out:
            rows.to_parquet(f"{out}/rows.parquet")
            data = MultiTurnSFTDataset(f"{out}/rows.parquet", tokenizer,
                                       {"pad_mode": "no_padding"})
            return [row["loss_mask"].tolist() for row in data]
    without_our_mask("MultiTurnSFTDataset", folder, model, masks_of)


# OpenRLHF's modules import these at their top, and they install only beside CUDA. Nothing that is
# called here uses them.
STUBS = """deepspeed deepspeed.runtime deepspeed.runtime.zero
           deepspeed.runtime.zero.partition_parameters flash_attn flash_attn.bert_padding
           flash_attn.utils flash_attn.utils.distributed vllm vllm.inputs vllm.utils""".split()


def put_stubs():
    """Stand-ins for the modules that are not installed."""
    missing = [name for name in STUBS if importlib.util.find_spec(name.split(".")[0]) is None]
    for name in missing:
        spec = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = MagicMock(__spec__=spec, __path__=[])
    print("stubbed:", *missing)


def openrlhf(folder: str, model: str):
    put_stubs()
    from openrlhf.datasets import SFTDataset
    from openrlhf.trainer.ppo_trainer import prepare_datasets
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
    from openrlhf.utils.agent import SingleTurnAgentExecutor
    from openrlhf.utils.utils import get_tokenizer
    flags = [*command("openrlhf.cli.train_ppo_ray"),
             "--data.prompt_dataset", f"{folder}/questions.jsonl",
             "--reward.remote_url", f"{ROOT}/nanoverify/tools/export.py"]
    start = MagicMock(side_effect=InterruptedError)
    with (patch("openrlhf.utils.get_strategy", start),
          patch("ray.is_initialized", return_value=True),
          patch("sys.argv", ["", *flags]),
          contextlib.suppress(InterruptedError)):
        # its flags are parsed and checked; it ends where it would start Ray and load models
        runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
    args = start.call_args[0][0]
    # their own strategy starts DeepSpeed
    strategy = SimpleNamespace(args=args, print=print, is_rank_0=lambda: True,
                               setup_dataloader=lambda dataset, *_, **__: dataset)
    tokenizer = get_tokenizer(model, None, "left", strategy)
    dataset = prepare_datasets(strategy, tokenizer)[0]
    executor = SingleTurnAgentExecutor(args.reward.remote_url)

    def reward_of(text, label, prompt, ids, room: int):
        async def generate(seen, *_, **__):  # in place of vLLM
            assert seen == prompt[-room:]
            output = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)
            return SimpleNamespace(outputs=[output])
        sampling = SimpleNamespace(max_tokens=100, logprobs=None)
        response = asyncio.run(executor.execute(text, label, sampling, room + 100, tokenizer,
                                                SimpleNamespace(generate=generate)))
        # None if the reward function failed
        return SamplesGenerator._process_response_into_experience(None, response).rewards

    rewards = []
    for number, (_, prompt, _, ids, _, expected) in enumerate(cases(folder, model)):
        _, text, label, _ = dataset[number // 4]
        for room in (1024, len(prompt) - 9):  # tokens for the prompt: enough, or its front is cut
            reward = reward_of(text, label, prompt, ids, room)
            assert reward is not None and abs(reward.item() - expected) < 1e-6, (text, reward)
        rewards.append(round(reward.item(), 4))
    print(f"{type(dataset).__name__}: {len(dataset)} questions, prompts are our ids; "
          f"{type(executor).__name__} rewards {len(rewards)} responses as we do, prompt cut or "
          f"not: {rewards[:4]}")

    def masks_of(rows):  # their masks are one place earlier, where a token is predicted
        data = SimpleNamespace(input_key="messages", output_key=None, apply_chat_template=True)
        strategy = SimpleNamespace(args=SimpleNamespace(data=data))
        theirs = SFTDataset(rows, tokenizer, 1024, strategy, num_processors=1)
        return [[0] + [int(learned) for learned in mask[0, :-1]] for _, _, mask in theirs]
    without_our_mask("SFTDataset", folder, model, masks_of)


def main(argv=None):
    engines = {"trl": trl, "verl": verl, "openrlhf": openrlhf}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="handover", help="of `python -m nanoverify.export`")
    parser.add_argument("--model", default=POLICY)
    parser.add_argument("--engines", nargs="+", choices=engines, default=list(engines),
                        help="default: all that are installed")
    args = parser.parse_args(argv)
    for name in args.engines:
        if importlib.util.find_spec(name) is None:
            print(f"{name}: SKIPPED, not installed")
            continue
        version = importlib.metadata.version
        print(f"{name} {version(name)}, transformers {version('transformers')}")
        engines[name](args.folder, args.model)


if __name__ == "__main__":
    main()
