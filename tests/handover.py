"""Beside the tests: the real TRL on our exported files, on a CPU. (pip install -e '.[handover]'; needs `python -m nanoverify.export`)

    python tests/handover.py                  # labels of SFTTrainer equal ours; 3 steps of GRPOTrainer with our rewards; transformers loads both results
"""
import argparse
import json
import tempfile

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from nanoverify.export import outcome_rewards, process_rewards
from nanoverify.stage import POLICY


def sft(folder: str, model: str, out: str):
    rows = load_dataset("json", data_files=f"{folder}/sft.jsonl", split="train").select(range(32))
    config = SFTConfig(out, max_steps=2, per_device_train_batch_size=4, max_length=None, shuffle_dataset=False, use_cpu=True, bf16=False,
                       report_to=[], save_strategy="no", dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False)
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
    questions = load_dataset("json", data_files=f"{folder}/questions.jsonl", split="train")
    config = GRPOConfig(out, max_steps=3, per_device_train_batch_size=8, num_generations=4, max_completion_length=60, use_cpu=True, bf16=False,
                        report_to=[], save_strategy="no", logging_steps=1)
    trainer = GRPOTrainer(model, reward_funcs=[outcome_rewards, process_rewards], args=config, train_dataset=questions)
    trainer.train()
    trainer.save_model(out)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 3
    print("GRPOTrainer: 3 steps, rewards", json.dumps([{key: round(value, 3) for key, value in row.items() if key.startswith("rewards/") and key.endswith("mean")} for row in logged]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="handover", help="of `python -m nanoverify.export`")
    parser.add_argument("--model", default=POLICY)
    args = parser.parse_args(argv)
    for step in (sft, grpo):
        with tempfile.TemporaryDirectory() as out:
            step(args.folder, args.model, out)
            model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
            prompt = tokenizer.apply_chat_template([{"role": "user", "content": "1 + 1?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                print("transformers serves it:", repr(tokenizer.decode(model.generate(**prompt, max_new_tokens=20, do_sample=False)[0])))


if __name__ == "__main__":
    main()
