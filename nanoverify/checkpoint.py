"""Read and write Hugging Face folders: config.json, safetensors weights, the tokenizer's files.

Strict: the files must hold every tensor that config.json implies, in its shape, and no other. The
weights are read tensor by tensor into a module without memory, so there is never a second copy. A
saved folder opens in transformers.

Limits: safetensors only, since pickle files can run code; bf16, fp16 and fp32 only, no quantized
weights. A saved model is one file.
"""
import collections
import dataclasses
import math
import re
import shutil
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nanoverify.model import Config, Transformer, rope_frequencies
from nanoverify.support.files import InputError, read_json, write_json, writing

LARGEST, DEEPEST = 10 ** 7, 1000  # far above any model; larger sizes overflow or take hours to fail
DTYPES = ("F32", "F16", "BF16")  # as safetensors spells them
HUB, HUB_ID = "hf:", re.compile(r"\w[\w.-]*/\w[\w.-]*")
MADE_BY = {"sft": "train_sft.py", "rl": "train_rl.py"}  # the default output folders
MERGE = ("python -c \"from peft import AutoPeftModelForCausalLM as M; "
         "from transformers import AutoTokenizer as T; "
         "M.from_pretrained('FOLDER').merge_and_unload().save_pretrained('NEW'); "
         "T.from_pretrained('FOLDER').save_pretrained('NEW')\"")
CARRIED = (  # copied from the checkpoint that a run started from
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json")


def find_folder(name) -> Path:
    """The folder of a checkpoint: its path, or "hf:org/name" for a model of the Hugging Face hub.

    The prefix is required: "out/sft" is also a possible name on the hub, of a stranger's model.
    InputError: no such folder, with the command to run first; the hub lacks it; a PEFT adapter.
    """
    folder, hub = Path(name), str(name).removeprefix(HUB)
    if hub != str(name):
        folder = download(hub)
    elif folder.exists() and not folder.is_dir():
        raise InputError(f"{name}: is a file; give the checkpoint's folder")
    elif not folder.exists():
        todo = ""
        if folder.with_name(f"{folder.name}.part").is_dir():
            todo = f"; {name}.part is a run that has not ended: finish it with --resume"
        elif folder.name in MADE_BY:
            todo = f"; run {MADE_BY[folder.name]} first, it makes such a folder"
        elif HUB_ID.fullmatch(str(name)):
            todo = f"; a model of the Hugging Face hub is called {HUB}{name}"
        raise InputError(f"{name}: no such folder{todo}")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{name}: is a PEFT adapter, not a whole model; merge it first: {MERGE}")
    return folder


def download(name: str) -> Path:
    """The folder of a hub model in the local cache."""
    if not HUB_ID.fullmatch(name):
        raise InputError(f"{HUB}{name}: a hub id has the form {HUB}org/name")
    try:
        from huggingface_hub import snapshot_download
        return Path(snapshot_download(
            name, allow_patterns=["*.json", "*.safetensors", "*.jinja", *CARRIED],
            ignore_patterns=["*/*", "consolidated*"]))
    except Exception as error:  # offline, unknown name, no permission: without a common base class
        raise InputError(
            f"{HUB}{name}: not available from the Hugging Face hub ({type(error).__name__}); "
            "download the checkpoint where there is a network and give its folder")


def load_config(folder) -> Config:
    """config.json as a Config. InputError: a field is missing or impossible."""
    path = find_folder(folder) / "config.json"
    try:
        config = Config.from_dict(read_json(path))
        check_fields(config)
        return config
    except KeyError as error:
        raise InputError(f"{path}: field {error} is missing")
    except (ValueError, TypeError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: {error}")


def check_fields(config: Config):
    """ValueError: a value that no model can have."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        shown = f"{field.name}={value!r:.40}"
        limit = DEEPEST if field.name == "num_hidden_layers" else LARGEST
        if field.type is int and not (type(value) is int and 0 < value <= limit):
            raise ValueError(f"{shown} must be a positive integer, at most {limit}")
        if field.type is float and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ValueError(f"{shown} must be a positive number")
        if field.type is bool and not isinstance(value, bool):
            raise ValueError(f"{shown} must be true or false")
    if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
        raise ValueError("num_attention_heads must be a multiple of num_key_value_heads, "
                         "and head_dim even")
    if config.num_attention_heads * config.head_dim > LARGEST:
        raise ValueError(f"num_attention_heads x head_dim must be at most {LARGEST}")
    if not rope_frequencies(config).isfinite().all():
        raise ValueError("rope_scaling or rope_parameters give angles that are not finite")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or those that its index names."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise InputError(no_weights(folder, index.name))
    names = read_json(index).get("weight_map")
    texts = isinstance(names, dict) and all(isinstance(name, str) for name in names.values())
    if not names or not texts:
        raise InputError(f"{index}: weight_map must give a file name for each tensor")
    return [named_file(index, name) for name in sorted(set(names.values()))]


def no_weights(folder: Path, index_name: str) -> str:
    """The error message for a folder without safetensors files."""
    pickles = sorted(path.name for path in folder.iterdir()
                     if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if not pickles:
        return f"{folder}: is no checkpoint: has neither model.safetensors nor {index_name}"
    return (f"{folder}: holds only {pickles[0]}; such files can run code and are not read. "
            "Convert what you trust: python -c "
            "\"from transformers import AutoModelForCausalLM as M; "
            "M.from_pretrained('FOLDER').save_pretrained('NEW')\"")


def named_file(index: Path, name: str) -> Path:
    """The path of a file that the index names. InputError: it lies outside the checkpoint."""
    folder = index.parent
    # the hub's cache keeps the files next to its snapshots, which are links to them
    root = (folder.parents[1] if folder.parent.name == "snapshots" else folder).resolve()
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(root)
    except (ValueError, OSError, RuntimeError) as error:  # a null byte, too long, a link to itself
        raise InputError(f"{index}: {name!r:.80} is no file name: {error!r:.80}")
    if not inside:
        raise InputError(f"{index}: {name!r} points outside the folder")
    if path.suffix != ".safetensors":
        raise InputError(f"{index}: {name!r:.80} is no safetensors file")
    return path


def checkpoint_files(folder) -> list[Path]:
    """The files that decide what a model answers."""
    folder = find_folder(folder)
    prompts_and_stops = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    there = [folder / name for name in prompts_and_stops if (folder / name).exists()]
    return [folder / "config.json", folder / "tokenizer.json", *there, *weight_files(folder)]


def open_weights(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}")


def load_model(folder, device="cpu", dtype=torch.float32) -> Transformer:
    """The checkpoint in `folder` (or "hf:org/name"), in eval mode on `device`, with weights of type
    `dtype`. InputError: the tensors do not fit config.json, or are damaged.
    """
    # 1. the module, without memory; a tied lm_head is no parameter of its own
    folder = find_folder(folder)
    config = load_config(folder)
    try:
        with torch.device("meta"):
            model = Transformer(config)
    except (KeyError, TypeError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{folder / 'config.json'}: no model can be built from it: "
                         f"{type(error).__name__}: {error}")
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}

    # 2. the names in the files; old Llama files also hold a constant
    opened = [open_weights(path) for path in weight_files(folder)]
    listed = [(name, file) for file in opened for name in file.keys()
              if not name.endswith("rotary_emb.inv_freq")]
    files = dict(listed)
    head = files.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    counts = collections.Counter(name for name, _ in listed)
    refuse_tensors(folder, shapes, files, sorted(name for name in counts if counts[name] > 1))

    # 3. the weights
    for name, file in files.items():
        # copy: a tensor that is still mapped to its file would break when the file is replaced
        tensor = file.get_tensor(name).to(device=device, dtype=dtype, copy=True)
        if not tensor.isfinite().all():
            raise InputError(f"{folder}: tensor {name} holds NaN or infinity; "
                             "the weights are damaged")
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))
    if config.tie_word_embeddings:
        name = "model.embed_tokens.weight"
        if head and not torch.equal(head.get_tensor("lm_head.weight"),
                                    files[name].get_tensor(name)):
            raise InputError(f"{folder}: config.json says tie_word_embeddings, but lm_head.weight "
                             f"differs from {name}")
        model.lm_head.weight = model.get_submodule("model.embed_tokens").weight
    model.frequencies = rope_frequencies(config).to(device)
    return model.eval()


def refuse_tensors(folder: Path, shapes: dict, files: dict, twice: list[str]):
    """InputError if names, shapes or types of the tensors differ from what the model needs.

    shapes: {name: shape} of the model; files: {name: file that holds it}; twice: names in two files
    """
    problems = [f"{name} missing" for name in shapes if name not in files]
    problems += [f"{name} unexpected" for name in files if name not in shapes]
    problems += [f"{name} twice, in two files" for name in twice]
    for name in shapes.keys() & files.keys():
        tensor = files[name].get_slice(name)  # reads its header only
        shape, dtype = tensor.get_shape(), tensor.get_dtype()
        if shape != shapes[name]:
            problems.append(f"{name} has shape {shape}, config.json implies {shapes[name]}")
        if dtype not in DTYPES:
            problems.append(f"{name} has dtype {dtype}, supported are {', '.join(DTYPES)}")
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(f"{folder}: tensors do not fit config.json: "
                         f"{'; '.join(problems[:20])}{more}")


def save_model(model: Transformer, folder, source, dtype=None):
    """Write the weights into `folder`, which exists, with the config, tokenizer and templates of
    the checkpoint `source`.
    """
    folder, source = Path(folder), find_folder(source)
    dtype = dtype or next(model.parameters()).dtype
    raw = read_json(source / "config.json")
    field = "dtype" if "dtype" in raw else "torch_dtype"
    raw[field] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", raw)
    weights = {name: parameter.detach().to("cpu", dtype).contiguous()
               for name, parameter in model.named_parameters()}
    try:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        raise InputError(f"{folder / 'model.safetensors'}: cannot be written ({error}); "
                         f"it needs {size / 1e6:.0f} MB; make room")
    for name in CARRIED:
        if (source / name).exists():
            with writing(folder / name, (source / name).stat().st_size):
                shutil.copyfile(source / name, folder / name)
