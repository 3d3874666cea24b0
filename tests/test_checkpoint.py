"""Folders in and out: what transformers writes opens here, what is written here opens there, and
damage is refused in one line."""
import shutil
import sys
import types

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanoverify.checkpoint import find_folder, load_config, load_model, save_model
from nanoverify.support.files import InputError, read_json, write_json

torch.set_num_threads(1)
IDS = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))


def write_checkpoint(folder, dtype=torch.float32, **saving):
    """A random Llama folder with a word tokenizer, written by transformers; **saving goes to
    save_pretrained."""
    tied = saving.pop("tied", True)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64,
                                 num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                 max_position_embeddings=128, bos_token_id=None, eos_token_id=2,
                                 tie_word_embeddings=tied))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    model.to(dtype).save_pretrained(folder, **saving)
    raw = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "one": 1, "</s>": 2, "two": 3}, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", eos_token="</s>",
        chat_template="{{ messages[0].content }}")
    fast.save_pretrained(folder)
    return folder


def their_logits(folder, ids=IDS):
    kind = transformers.AutoModelForCausalLM
    with torch.no_grad():
        return kind.from_pretrained(folder, dtype=torch.float32)(ids).logits


def our_logits(folder, ids=IDS):
    with torch.no_grad():
        return load_model(folder)(ids)


def error_of(function, *arguments) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_opens_in_transformers(tied, tmp_path):
    """Bug: the saved folder lacks a tensor, a name or a tokenizer file, or its weights are those
    from before training."""
    source, target = write_checkpoint(tmp_path / "a", tied=tied), tmp_path / "b"
    target.mkdir()
    model = load_model(source)
    assert not model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
        trained = model(IDS)
    save_model(model, target, source)
    torch.testing.assert_close(their_logits(target), trained, atol=1e-5, rtol=0)
    torch.testing.assert_close(our_logits(target), trained, atol=0, rtol=0)
    assert ("lm_head.weight" in load_file(target / "model.safetensors")) == (not tied)
    assert read_json(target / "config.json") == read_json(source / "config.json")
    chat = transformers.AutoTokenizer.from_pretrained(target).apply_chat_template(
        [{"role": "user", "content": "two one"}])
    assert chat["input_ids"] == [3, 1]
    assert (target / "generation_config.json").read_text() == (
        source / "generation_config.json").read_text()


def test_saved_dtype(tmp_path):
    """Bug: config.json tells another dtype than the weights have; transformers then opens the model
    in the wrong one."""
    source, target = write_checkpoint(tmp_path / "a"), tmp_path / "b"
    target.mkdir()
    save_model(load_model(source), target, source, dtype=torch.bfloat16)
    assert {tensor.dtype
            for tensor in load_file(target / "model.safetensors").values()} == {torch.bfloat16}
    assert transformers.AutoModelForCausalLM.from_pretrained(target).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_folder(dtype, tmp_path):
    """Bug: weights keep the file's dtype, and fp32 parts of the model clash with them or lose
    precision."""
    folder = write_checkpoint(tmp_path, dtype)
    torch.testing.assert_close(our_logits(folder), their_logits(folder), atol=1e-5, rtol=0)
    model = load_model(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    again = load_model(folder).to(torch.bfloat16)
    with torch.no_grad():
        far = IDS.repeat(1, 10)
        # the angles of rotary positions stay fp32, whichever way bf16 was asked for
        assert torch.equal(model(far), again(far))


def test_sharded_folder(tmp_path):
    """Bug: only the first shard is read."""
    folder = write_checkpoint(tmp_path, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    torch.testing.assert_close(our_logits(folder), their_logits(folder), atol=1e-5, rtol=0)
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    assert shard.name in error_of(load_model, folder)


def test_tied_head_in_the_file(tmp_path):
    """Bug: an lm_head that repeats the embedding counts as unexpected; one that contradicts it is
    passed over."""
    folder = write_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors",
              metadata={"format": "pt"})
    model = load_model(folder)
    assert model.lm_head.weight is model.model["embed_tokens"].weight
    save_file({**weights, "lm_head.weight": head + 1}, folder / "model.safetensors",
              metadata={"format": "pt"})
    assert "lm_head.weight" in error_of(load_model, folder)


def test_loaded_weights_do_not_depend_on_the_file(tmp_path):
    """Bug: tensors mapped to their file change, or the process dies, when an output folder replaces
    the one that was read."""
    folder = write_checkpoint(tmp_path)
    model = load_model(folder)
    before = model(IDS)
    path = folder / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(model(IDS), before)


def test_all_misfits_are_listed_together(tmp_path):
    """Bug: strange tensors are skipped, missing ones keep random values, or the user learns of them
    one run at a time."""
    folder = write_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.self_attn.k_proj.weight"]
    weights["model.layers.1.extra.weight"] = torch.zeros(3)
    weights["model.norm.weight"] = torch.ones(5)
    weights["model.layers.1.input_layernorm.weight"] = torch.ones(32, dtype=torch.int8)
    # harmless: old Llama files carry it
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = error_of(load_model, folder)
    for part in ("k_proj.weight missing", "extra.weight unexpected",
                 "model.norm.weight has shape [5], config.json implies [32]",
                 "input_layernorm.weight has dtype I8"):
        assert part in message
    assert "inv_freq" not in message


def test_untied_without_head(tmp_path):
    """Bug: an absent lm_head is taken for a tied one, against config.json."""
    folder = write_checkpoint(tmp_path)
    write_json(folder / "config.json",
               {**read_json(folder / "config.json"), "tie_word_embeddings": False})
    assert "lm_head.weight missing" in error_of(load_model, folder)


def test_pickle_only_is_refused(tmp_path):
    """Bug: a file that can run code is opened, or the user is not told what to do instead."""
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = error_of(load_model, folder)
    assert "pytorch_model.bin" in message and "save_pretrained" in message


@pytest.mark.parametrize("name", ["../outside.safetensors", "{parent}/outside.safetensors",
                                  "link.safetensors"])
def test_index_must_stay_inside(name, tmp_path):
    """Bug: an index, which is data from a stranger, makes the loader read any file of the
    machine."""
    folder = write_checkpoint(tmp_path / "a")
    shutil.move(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    weight_map = dict.fromkeys(load_file(tmp_path / "outside.safetensors"),
                               name.format(parent=tmp_path))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    assert "points outside the folder" in error_of(load_model, folder)


def test_hub_cache_layout_opens(tmp_path):
    """Bug: the hub's cache, whose snapshots are links to blobs beside them, counts as links out of
    the folder."""
    folder = write_checkpoint(tmp_path / "models--a--b" / "snapshots" / "1f", max_shard_size="8KB")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.glob("*.safetensors"))):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    torch.testing.assert_close(our_logits(folder), their_logits(folder), atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"model.norm.weight": 3}])
def test_broken_index(weight_map, tmp_path):
    """Bug: a traceback from a half-written index."""
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    assert "weight_map" in error_of(load_model, folder)


@pytest.mark.parametrize("damage",
                         [lambda b: b[:-10], lambda b: b[:50], lambda b: b[:4], lambda b: b"",
                          lambda b: b"\xff" * 8 + b[8:], lambda b: b[:8] + b"}" + b[9:],
                          lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_broken_safetensors(damage, tmp_path):
    """Bug: a download that broke off, or a git-lfs pointer in place of the file, ends in a
    traceback."""
    folder = write_checkpoint(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    message = error_of(load_model, folder)
    assert str(path) in message and "safetensors" in message


def test_not_a_checkpoint(tmp_path):
    """Bug: a wrong --model ends in a traceback, or its message does not say what was wrong."""
    assert "no such folder" in error_of(load_model, tmp_path / "absent")
    assert "config.json" in error_of(load_model, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json: not valid JSON" in error_of(load_config, tmp_path)
    assert "is a file" in error_of(load_model, tmp_path / "config.json")
    folder = write_checkpoint(tmp_path / "a")
    (folder / "model.safetensors").unlink()
    assert "no checkpoint" in error_of(load_model, folder)
    write_json(folder / "config.json",
               {**read_json(folder / "config.json"), "rope_parameters": {"rope_type": "llama3"}})
    assert "config.json" in error_of(load_model, folder)


def test_hub_id(tmp_path, monkeypatch):
    """Bug: a hub id is never looked up, drags along pickles and other formats; or out/sft,
    before stage 1 has made it, is somebody else's model of that name."""
    folder, calls = write_checkpoint(tmp_path / "cache"), []

    def download(name, **patterns):
        calls.append((name, patterns))
        if name == "org/offline":
            raise ConnectionError("a long\ntext")
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub",
                        types.SimpleNamespace(snapshot_download=download))
    monkeypatch.chdir(tmp_path)
    assert load_model("hf:org/name").config.architecture == "LlamaForCausalLM"
    assert calls[0][0] == "org/name" and "*.bin" not in calls[0][1]["allow_patterns"]
    message = error_of(load_model, "hf:org/offline")
    assert "hf:org/offline" in message and "give its folder" in message
    assert "hf:org/name" in error_of(load_model, "hf:name") and len(calls) >= 2
    count = len(calls)
    for name, todo in (("out/sft", "run train_sft.py first"), ("out/rl", "run train_rl.py first"),
                       (tmp_path / "x" / "sft", "run train_sft.py first"),
                       ("org/name", "is called hf:org/name")):
        message = error_of(load_model, name)
        assert f"{name}: no such folder" in message and todo in message
    (tmp_path / "out" / "sft.part").mkdir(parents=True)
    message = error_of(load_model, "out/sft")
    assert "out/sft.part is a run that has not ended: finish it with --resume" in message
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert str(find_folder("org/name")) == "org/name" and len(calls) == count


def test_adapters_are_refused(tmp_path):
    """Bug: the weights beside an adapter are taken without it; or a folder with an adapter only
    is told to lack config.json."""
    whole = write_checkpoint(tmp_path / "whole")
    (tmp_path / "adapter").mkdir()
    for folder in (whole, tmp_path / "adapter"):
        write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
        for load in (load_model, load_config):
            message = error_of(load, folder)
            assert f"{folder}: is a PEFT adapter" in message and "merge_and_unload" in message
