"""Beside the tests: the engines' own code on our exported files, on a CPU. (pip install -e '.[handover]'; needs `python -m nanoverify.export`)

    python -m nanoverify.bench.handover                        # each engine that is installed; one that is not is named
    python -m nanoverify.bench.handover --engines verl         # verl and OpenRLHF pin different versions of transformers: an environment each

TRL is run: labels of SFTTrainer equal ours; 3 steps of GRPOTrainer with our rewards; transformers loads both results. verl and
OpenRLHF need GPUs to run: here their own code reads the commands of docs/outgrow.md and our questions, loads our reward file and pays prepared
responses with it; their SFT data sets are shown to refuse sft.jsonl, and to learn more tokens from messages than we do.
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
    config = SFTConfig(out, max_steps=2, per_device_train_batch_size=4, max_length=None, shuffle_dataset=False, use_cpu=True, bf16=False,
                       report_to=[], save_strategy="no", logging_steps=1, dataset_kwargs={"skip_prepare_dataset": True},
                       remove_unused_columns=False)
    trainer = SFTTrainer(model, args=config, train_dataset=rows)
    learned = 0
    for batch, start in zip(trainer.get_eval_dataloader(rows), range(0, 32, trainer.args.eval_batch_size)):
        for ids, labels, row in zip(batch["input_ids"], batch["labels"], rows.select(range(start, min(start + trainer.args.eval_batch_size, 32)))):
            n = len(row["input_ids"])
            assert ids[:n].tolist() == row["input_ids"] and labels[:n].tolist() == row["labels"] and (labels[n:] == -100).all()
            learned += sum(label != -100 for label in row["labels"])
    trainer.train()
    trainer.save_model(out)
    print(f"SFTTrainer: labels of 32 trajectories equal ours ({learned} learned tokens), 2 steps, losses {[round(x['loss'], 3) for x in trainer.state.log_history if 'loss' in x]}")


def grpo(folder: str, model: str, out: str):
    from trl import GRPOConfig, GRPOTrainer
    questions = load_dataset("json", data_files=f"{folder}/questions.jsonl", split="train")
    config = GRPOConfig(out, max_steps=3, per_device_train_batch_size=8, num_generations=4, max_completion_length=60, use_cpu=True, bf16=False,
                        report_to=[], save_strategy="no", logging_steps=1)
    trainer = GRPOTrainer(model, reward_funcs=[outcome_rewards, process_rewards], args=config, train_dataset=questions)
    trainer.train()
    trainer.save_model(out)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 3
    print("GRPOTrainer: 3 steps, rewards", json.dumps([{key: round(value, 3) for key, value in row.items() if key.startswith("rewards/") and key.endswith("mean")} for row in logged]))


def trl(folder: str, model: str):
    for step in (sft, grpo):
        with tempfile.TemporaryDirectory() as out:
            step(folder, model, out)
            trained, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
            prompt = tokenizer.apply_chat_template([{"role": "user", "content": "1 + 1?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                print("transformers serves it:", repr(tokenizer.decode(trained.generate(**prompt, max_new_tokens=20, do_sample=False)[0])))


def command(module: str) -> list[str]:
    """The arguments of the command in docs/outgrow.md: what is said there is what is tried here."""
    lines = (ROOT / "docs" / "outgrow.md").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return shlex.split(next(line for line in lines if line.startswith(f"python3 -m {module} ")))[3:]


def cases(folder: str, model: str):
    """(question row, prompt ids, response text, response ids, our SFT mask, outcome + process as train_rl.py pays them)."""
    tokenizer = Tokenizer.load(model)
    for _, row in list(read_jsonl(f"{folder}/questions.jsonl"))[:COUNT]:
        right, wrong, yes, no = f"The answer is {row['answer']}.", "The answer is 987654.", VERDICTS[True], VERDICTS[False]
        for actions in ([right, RECHECK, yes], [wrong, RECHECK, no, RETRY, right, RECHECK, yes], [wrong, RECHECK, yes],
                        [wrong, RECHECK, no, RETRY, wrong]):
            text = "\n\n".join(actions)
            ids = tokenizer.encode(text) + [tokenizer.end_id]
            trajectory = parse(Problem("", "", row["answer"], "", None), ids, True, tokenizer)
            rewards = ppo.action_rewards(trajectory)
            reward = ppo.outcome_reward(trajectory) + sum(rewards) / len(rewards)
            yield row, tokenizer.prompt(row["prompt"][0]["content"]), text, ids, loss_mask(trajectory), reward


def without_our_mask(name: str, folder: str, model: str, masks_of):
    """`masks_of`: rows -> the loss masks of an SFT data set. It refuses our ids and labels; of messages it learns the whole response."""
    try:
        masks_of(load_dataset("json", data_files=f"{folder}/sft.jsonl", split="train").select(range(COUNT)))
    except KeyError as error:
        print(f"{name} does not take sft.jsonl: it looks for {error}")
    else:
        raise AssertionError(f"{name} takes sft.jsonl after all: say so in docs/outgrow.md")
    rows = list(cases(folder, model))
    masks = masks_of(Dataset.from_list([{"messages": [*row["prompt"], {"role": "assistant", "content": text}]} for row, _, text, *_ in rows]))
    for (_, prompt, _, ids, _, _), mask in zip(rows, masks, strict=True):
        assert mask == [0] * len(prompt) + [1] * len(ids)
    print(f"{name} of messages: learns {sum(map(sum, masks))} tokens of {len(rows)} responses, we {sum(sum(ours) for *_, ours, _ in rows)}")


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
        config = compose("ppo_trainer", [*command("verl.trainer.main_ppo"), f"data.train_files={folder}/questions.jsonl",
                                         f"reward.custom_reward_function.path={ROOT}/nanoverify/tools/export.py"])
    validate_config(config, need_reference_policy(config), need_critic(config))
    tokenizer = hf_tokenizer(model)
    dataset, manager = create_rl_dataset(config.data.train_files, config.data, tokenizer, None), load_reward_manager(config, tokenizer)
    assert [dataset[i]["prompt"] for i in range(len(dataset))] == [row["prompt"] for _, row in read_jsonl(f"{folder}/questions.jsonl")]
    paid = []
    for number, (row, prompt, _, ids, _, expected) in enumerate(cases(folder, model)):
        theirs = dataset[number // 4]
        assert tokenizer.apply_chat_template(theirs["raw_prompt"], add_generation_prompt=True, return_dict=False) == prompt
        padded = {"responses": torch.tensor([ids + [tokenizer.pad_token_id] * 3]),
                  "attention_mask": torch.tensor([[1] * len(prompt + ids) + [0] * 3])}
        found = manager.loop.run_until_complete(manager.run_single(DataProto.from_single_dict({**collate_fn([theirs]), **padded})))
        assert abs(found["reward_score"] - expected) < 1e-6, (row, found, expected)
        paid.append(round(found["reward_score"], 4))
    print(f"{type(dataset).__name__}: {len(dataset)} questions, prompts are our ids; {type(manager).__name__} pays {len(paid)} responses as we do: "
          f"{paid[:4]}")

    def masks_of(rows):
        with tempfile.TemporaryDirectory() as out:
            rows.to_parquet(f"{out}/rows.parquet")
            return [row["loss_mask"].tolist() for row in MultiTurnSFTDataset(f"{out}/rows.parquet", tokenizer, {"pad_mode": "no_padding"})]
    without_our_mask("MultiTurnSFTDataset", folder, model, masks_of)


# OpenRLHF's modules import these at their top, and they install only beside CUDA; nothing that is called here uses them
STUBS = """deepspeed deepspeed.runtime deepspeed.runtime.zero deepspeed.runtime.zero.partition_parameters flash_attn flash_attn.bert_padding
           flash_attn.utils flash_attn.utils.distributed vllm vllm.inputs vllm.utils""".split()


def openrlhf(folder: str, model: str):
    missing = [name for name in STUBS if importlib.util.find_spec(name.split(".")[0]) is None]
    sys.modules.update({name: MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None), __path__=[]) for name in missing})
    print("stubbed:", *missing)
    from openrlhf.datasets import SFTDataset
    from openrlhf.trainer.ppo_trainer import prepare_datasets
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
    from openrlhf.utils.agent import SingleTurnAgentExecutor
    from openrlhf.utils.utils import get_tokenizer
    flags = [*command("openrlhf.cli.train_ppo_ray"), "--data.prompt_dataset", f"{folder}/questions.jsonl",
             "--reward.remote_url", f"{ROOT}/nanoverify/tools/export.py"]
    start = MagicMock(side_effect=InterruptedError)
    with patch("openrlhf.utils.get_strategy", start), patch("ray.is_initialized", return_value=True), patch("sys.argv", ["", *flags]):
        with contextlib.suppress(InterruptedError):  # its flags are parsed and checked; it ends where it would start Ray and load models
            runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
    args = start.call_args[0][0]
    strategy = SimpleNamespace(args=args, print=print, is_rank_0=lambda: True,  # theirs starts DeepSpeed
                               setup_dataloader=lambda dataset, *_, **__: dataset)
    tokenizer = get_tokenizer(model, None, "left", strategy)
    dataset, executor, paid = prepare_datasets(strategy, tokenizer)[0], SingleTurnAgentExecutor(args.reward.remote_url), []
    for number, (_, prompt, _, ids, _, expected) in enumerate(cases(folder, model)):
        for room in (1024, len(prompt) - 9):  # tokens for the prompt: enough, and too few, so that its front is cut
            async def generate(seen, *_, **__):  # stands for vLLM
                assert seen == prompt[-room:]
                return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)])
            _, text, label, _ = dataset[number // 4]
            sampling = SimpleNamespace(max_tokens=100, logprobs=None)
            response = asyncio.run(executor.execute(text, label, sampling, room + 100, tokenizer, SimpleNamespace(generate=generate)))
            found = SamplesGenerator._process_response_into_experience(None, response).rewards  # None where the reward function failed
            assert found is not None and abs(found.item() - expected) < 1e-6, (text, found, expected)
        paid.append(round(found.item(), 4))
    print(f"{type(dataset).__name__}: {len(dataset)} questions, prompts are our ids; {type(executor).__name__} pays {len(paid)} responses as we do, "
          f"prompt cut or not: {paid[:4]}")

    def masks_of(rows):  # theirs stands where a token is predicted, one place earlier
        data = SimpleNamespace(input_key="messages", output_key=None, apply_chat_template=True)
        theirs = SFTDataset(rows, tokenizer, 1024, SimpleNamespace(args=SimpleNamespace(data=data)), num_processors=1)
        return [[0] + [int(learned) for learned in mask[0, :-1]] for _, _, mask in theirs]
    without_our_mask("SFTDataset", folder, model, masks_of)


def main(argv=None):
    engines = {"trl": trl, "verl": verl, "openrlhf": openrlhf}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="handover", help="of `python -m nanoverify.export`")
    parser.add_argument("--model", default=POLICY)
    parser.add_argument("--engines", nargs="+", choices=engines, default=list(engines), help="default: all that are installed")
    args = parser.parse_args(argv)
    for name in args.engines:
        if importlib.util.find_spec(name) is None:
            print(f"{name}: SKIPPED, not installed")
            continue
        print(f"{name} {importlib.metadata.version(name)}, transformers {importlib.metadata.version('transformers')}")
        engines[name](args.folder, args.model)


if __name__ == "__main__":
    main()
