"""Malformed and hostile files: one line on stderr that names the file, exit code 2, nothing left
behind, nothing executed."""
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_input import GOOD, SMALL, left_behind, refusal

import build_data
import train_rl
import train_sft
from nanoverify import evaluate, tokenizer
from nanoverify.support import state
from nanoverify.support.files import InputError, read_json, read_jsonl, write_json, write_jsonl
from nanoverify.tools import export

pytestmark = pytest.mark.usefixtures("elsewhere")
LINE = json.dumps(GOOD).encode()
DEEP = b"[" * 100_000


# ---- data files --------------------------------------------------------------------------------

def field(**fields):
    return LINE + b"\n" + json.dumps({**GOOD, "id": "2", **fields}).encode()


BOTH = [  # for trajectories and for questions: content, what the message must name
    (b"\n" + LINE + b"\n\xff\xfe", ":3: not valid UTF-8"),
    (LINE.replace(b"2", b"\xc3"), ":1: not valid UTF-8"),
    (LINE.replace(b"1 + 1", b"\\ud800"), ":1: not valid UTF-8"),
    (LINE.replace(b'"question"', b'"\\udfff"'), ":1: not valid UTF-8"),
    (LINE + b"\n" + LINE[:40], ":2: not valid JSON"), (LINE[:-1], ":1: not valid JSON"),
    (LINE + LINE, ":1: not valid JSON"),
    (LINE + b"\n" + DEEP, ":2: not valid JSON"),
    (LINE[:-1] + b', "more": ' + DEEP, ":1: not valid JSON"), (b"\0" * 50, ":1: not valid JSON"),
    (b"[]\n", ":1: expected a JSON object, found list"), (b"null", ":1: expected a JSON object"),
    (b"NaN", ":1: expected a JSON object"),
    (b'"text"', ":1: expected a JSON object"), (b"7", ":1: expected a JSON object"),
    (b"9" * 9999, ":1: not valid JSON"),
    (LINE.decode().encode("utf-16"), ":1: not valid UTF-8"),
    (b"question,answer\n1 + 1?,2\n", ":1: not valid JSON"),
    (b"\x80\x04\x95\x10", ":1: not valid UTF-8"), (b"", "bad.jsonl: no "),
    (b"\n \r\n\t\n", "bad.jsonl: no "), ("folder", "bad.jsonl: cannot be read"),
    ("missing", "bad.jsonl: cannot be read"), ("loop", "bad.jsonl: cannot be read"),
    ("locked", "bad.jsonl: cannot be read"),
    *((field(question=value), ":2: no text in 'question'")
      for value in (None, 5, True, [], {}, 1e300)),
    *((field(answer=value), ":2: ") for value in (None, True, [], {"a": 1})),
]
TRAJECTORIES = BOTH + [*((field(response=value), ":2: no text in 'response'")
                         for value in (None, 5, False, ["text"], {}, float("nan"))),
                       *((field(id=value), ":2: no text in 'id'") for value in (None, 5, [])),
                       (field(answer=2), ":2: no text in 'answer'")]
QUESTIONS = BOTH + [(LINE + b"\n" + LINE, ":2: id '1' was used before, in bad.jsonl:1"),
                    (field(question="  "), ":2: no text in 'question'"),
                    (field(answer=""), ":2: no final answer"),
                    (field(answer=float("nan")), ":2: 'answer'"),
                    (field(answer=float("-inf")), ":2: 'answer'"),
                    (LINE.replace(b'"2"', b"1e999"), ":1: 'answer'")]


def put(path: Path, content):
    """Write bytes, or make what a word stands for."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    elif content == "loop":
        path.symlink_to(path.name)
    elif content == "locked":
        path.write_bytes(LINE)
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")


@pytest.mark.parametrize("content, named", TRAJECTORIES)
@pytest.mark.parametrize("main", [train_sft.main, export.main])
def test_trajectories(main, content, named, policy, elsewhere, capsys):
    """Bug: a traceback, a bad line passed over, or a message without file and line."""
    put(elsewhere / "bad.jsonl", content)
    if main is not train_sft.main:
        named = named.replace("no text in '", "no text in ").partition(" in ")[0]
    flags = ["--model", policy, *SMALL, "--data", "bad.jsonl", "--out", "new"]
    assert named in refusal(main, flags, capsys)
    assert set(left_behind(elsewhere)) <= {"bad.jsonl"}


@pytest.mark.parametrize("content, named", QUESTIONS)
def test_questions(content, named, policy, elsewhere, capsys):
    """Bug: as above, or a question whose answer is no number in the file (NaN, infinity) is asked
    and never solved."""
    put(elsewhere / "bad.jsonl", content)
    for main, more in ((build_data.main, ["--out", "new"]), (train_rl.main, ["--out", "new"]),
                       (evaluate.main, ["--responses", "new"])):
        assert named in refusal(main,
                                ["--model", policy, *SMALL, "--questions", "bad.jsonl", *more],
                                capsys)
        assert set(left_behind(elsewhere)) <= {"bad.jsonl"}


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + LINE, LINE + b"\r\n",
                                     b"\n\n" + LINE + b"\n \t\r\n", LINE + b"\n\n", LINE])
def test_harmless_oddities(content, policy, elsewhere, capsys):
    """Bug: a byte order mark, Windows line ends, blank lines or a last line without an end count as
    damage."""
    (elsewhere / "odd.jsonl").write_bytes(content)
    assert [row for _, row in read_jsonl("odd.jsonl")] == [GOOD]
    evaluate.main(["--model", policy, *SMALL, "--questions", "odd.jsonl", "--json"])
    assert json.loads(capsys.readouterr().out)["count"] == 1
    train_sft.main(["--model", policy, *SMALL, "--data", "odd.jsonl", "--out", "new", "--epochs",
                    "1"])


# ---- checkpoints -------------------------------------------------------------------------------

def raw(name, content):
    """A file of the checkpoint is replaced; None: it is missing."""
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        put(folder / name, content)
    return damage


def change(name, **fields):
    """Fields of a JSON file are replaced; ...: the field is missing."""
    def damage(folder):
        old = read_json(folder / name) if (folder / name).exists() else {}
        write_json(folder / name,
                   {key: value for key, value in {**old, **fields}.items() if value is not ...})
    return damage


def header(edit):
    """The header of model.safetensors, a dict, goes through `edit`; the data after it stays."""
    def damage(folder):
        whole = (folder / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", whole[:8])[0]
        names = json.loads(whole[8: 8 + size])
        text = edit(names)
        text = text if isinstance(text, bytes) else json.dumps(text or names).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text
                                                   + whole[8 + size:])
    return damage


def weights(edit):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")
    return damage


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def shards(weight_map, **files):
    """An index in place of model.safetensors, which is called whole.safetensors then."""
    def damage(folder):
        (folder / "model.safetensors").rename(folder / "whole.safetensors")
        write_json(folder / "model.safetensors.index.json",
                   {"weight_map": weight_map} if weight_map is not ... else {})
        for name, source in files.items():
            shutil.copyfile(folder / source, folder / f"{name}.safetensors")
    return damage


def each(*damages):
    return lambda folder: [damage(folder) for damage in damages]


def outside_link(folder):
    (folder / "model.safetensors").rename(folder.parent / "stranger.safetensors")
    (folder / "link.safetensors").symlink_to("../stranger.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {NORM: "link.safetensors"}})


NORM = "model.norm.weight"
Q = "model.layers.0.self_attn.q_proj.weight"
EMBED = "model.embed_tokens.weight"
W = "model.safetensors"
C = "config.json"
T = "tokenizer.json"
TC = "tokenizer_config.json"
G = "generation_config.json"
INDEX = "model.safetensors.index.json"
TEMPLATES = ["{% if %}", "{% for a in b %}", "{{ 1 / 0 }}", "{{ undefined_thing.field }}",
             "{{ messages.__class__.__mro__[1].__subclasses__() }}", "{{ ''.__class__.mro() }}",
             "{% import 'os' as os %}", "{% include '/etc/passwd' %}",
             "{{ raise_exception('a\nb\x1b[2J') }}", "{{ cycler.__init__.__globals__.os }}",
             "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}{{ ''.__class__() }}",
             "{{ strftime_now.__globals__['json'] }}", "(" * 5 + "{{ " + "(" * 50_000,
             "{% for a in 'b' %}" * 30 + "{% endfor %}" * 30,
             "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 'a' * 10 ** 12 }}",
             "{{ 7 ** 7 ** 77 }}", "{% set r = range(99999) %}" + "{% for a in r %}" * 4
             + "{% endfor %}" * 4, "{{ range(10 ** 9) | list }}", "{{ [[0] * 99999] * 99999 }}"]
CHECKPOINTS = [
    *((raw(C, content), "config.json")
      for content in (None, b"", b"{", b"[]", b'"x"', b"null", b"\xff", DEEP, b'{"a": ' + DEEP,
                      "folder", "loop", "locked")),
    *((change(C, **{name: ...}), f"config.json: field '{name}' is missing")
      for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")),
    *((change(C, **{name: value}), f"config.json: {name}")
      for name in ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim",
                   "max_position_embeddings", "intermediate_size")
      for value in ("8", -1, 2.5, [3], True, 10 ** 30)),
    *((change(C, architectures=value), "config.json: architecture")
      for value in (["GPT2LMHeadModel"], 5, {"a": 1}, [[]], "Llama", [None])),
    *((change(C, architectures=value, model_type="gpt2"), "config.json: architecture")
      for value in (None, [], ...)),
    (raw("adapter_config.json", b"{}"), "is a PEFT adapter"),
    (each(change(TC, chat_template=None), raw("chat_template.json", b"{")),
     "chat_template.json: not valid JSON"),
    *((change(C, **{name: value}), f"config.json: {name}") for name, value in (
        ("hidden_act", "gelu"), ("rms_norm_eps", "x"), ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", -1), ("rms_norm_eps", None), ("tie_word_embeddings", "yes"),
        ("attention_bias", True), ("mlp_bias", True), ("quantization_config", {"bits": 4}),
        ("partial_rotary_factor", 0.5), ("pretraining_tp", 2))),
    *((change(C, rope_theta=value), "config.json: ")
      for value in ("x", -3, {"a": 1}, float("nan"), 10 ** 400)),
    *((change(C, rope_parameters=None, rope_scaling=value), "config.json: ") for value in (
        {"rope_type": "yarn"}, {"rope_type": "linear"}, {"rope_type": "linear", "factor": "x"},
        {"rope_type": "linear", "factor": 0}, {"rope_type": "llama3"}, [1], "linear",
        {"rope_type": ["linear"]}, 7)),
    (change(C, num_hidden_layers=999_999), "config.json: num_hidden_layers"),
    (change(C, num_attention_heads=3), C), (change(C, head_dim=9), C),
    (change(C, hidden_size=64), "has shape"), (change(C, num_hidden_layers=40), "missing"),
    (change(C, vocab_size=9), ""),
    (each(change(C, vocab_size=40, eos_token_id=5),
          weights(lambda t: t.update({EMBED: t[EMBED][:40].clone()}))),
     "where the vocabulary ends with 39"),
    *((cut(W, keep), W) for keep in (0, 3, 8, 60, -1, -1000)),
    *((raw(W, content), W)
      for content in (b"\xff" * 100, struct.pack("<Q", 2 ** 62) + b"{}",
                      struct.pack("<Q", 2) + b"[]", "folder", "loop", "locked",
                      b"version https://git-lfs", b"<html>")),
    (header(lambda h: b"no JSON"), W), (header(lambda h: DEEP), W),
    (header(lambda h: {**h, "__metadata__": 3}), W),
    (header(lambda h: h[NORM].update(dtype="F31")), W),
    (header(lambda h: h[NORM].update(data_offsets=[0, 4])), W),
    (header(lambda h: h[NORM].update(data_offsets=[2 ** 40, 2 ** 40 + 64])), W),
    (header(lambda h: h[NORM].update(data_offsets=[8, 4])), W),
    (header(lambda h: h[NORM].update(data_offsets=h[Q]["data_offsets"], shape=h[Q]["shape"])), W),
    (header(lambda h: h[NORM].update(shape=[2 ** 63, 2 ** 63])), W),
    (header(lambda h: h[NORM].update(shape=[-1])), W), (header(lambda h: h[NORM].pop("shape")), W),
    (weights(lambda t: t.pop(Q)), f"{Q} missing"),
    (weights(lambda t: t.update(more=torch.ones(2))), "more unexpected"),
    (weights(lambda t: t.clear()), "missing"), (raw(W, struct.pack("<Q", 2) + b"{}"), "missing"),
    (weights(lambda t: t.update({NORM: torch.ones(3)})), f"{NORM} has shape"),
    (weights(lambda t: t.update({NORM: t[NORM].double()})), f"{NORM} has dtype F64"),
    (weights(lambda t: t.update({NORM: t[NORM].long()})), f"{NORM} has dtype I64"),
    (weights(lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)})), f"{Q} has dtype F8"),
    (weights(lambda t: t[Q].fill_(float("nan"))), Q),
    (weights(lambda t: t[NORM].fill_(float("inf"))), NORM),
    *((shards({NORM: name}), "points outside")
      for name in ("../policy.safetensors", "/etc/passwd", "a/../../b")),
    (outside_link, "points outside"),
    *((shards({NORM: name}), INDEX) for name in ("a\0b", "", "a" * 5000, ".")),
    *((shards(value), INDEX) for value in (..., None, {}, [], {NORM: 3}, {NORM: None})),
    (shards({NORM: "none.safetensors"}), "none.safetensors"),
    (shards({NORM: "one.safetensors", Q: "two.safetensors"}, one="whole.safetensors",
            two="whole.safetensors"), "twice"),
    *((lambda folder, name=name: (folder / W).rename(folder / name), name)
      for name in ("pytorch_model.bin", "model.pt", "model.ckpt")), (raw(W, None), "no checkpoint"),
    *((raw(T, content), T)
      for content in (None, b"", b"{", b"[]", b"{}", DEEP, b"\xff", b'{"model": 5}',
                      b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "folder")),
    (cut(T, 200), T), (cut(T, -3), T),
    (change(T, model={"type": "BPE", "vocab": {"a": -1}, "merges": []}), T),
    (change(T, model={"type": "WordLevel", "vocab": {f"w{n}": n for n in range(300)},
                      "unk_token": "?"}), T),
    *((raw(name, content), name) for name in (TC, G, "special_tokens_map.json")
      for content in (b"{", b"[1]", DEEP, b"\xff", "folder")),
    *((change(TC, eos_token=value), TC) for value in ({}, {"content": 5}, {"content": None})),
    *((change(TC, chat_template=value), TC)
      for value in (5, [1], [{}], {"a": 1}, [{"name": "default", "template": 7}], True)),
    (raw(TC, b'{"eos_token": "<|end|>", "chat_template": "\\ud800{{ messages[0].content }}"}'),
     "tokenizer.json cannot encode"),
    *((change(G, eos_token_id=value), G) for value in ("2", 2.5, True, [[2]], {"a": 2}, [2, None])),
    *((each(change(C, eos_token_id=value), change(TC, eos_token=None)), "end-of-sequence")
      for value in (-1, 10 ** 9, 10 ** 30, None, [])),
    *((change(G, pad_token_id=value), G) for value in ("x", [2.5], {"a": 1})),
    *((change(TC, chat_template=text), "template") for text in TEMPLATES),
    (raw("chat_template.jinja", b"\xff"), "template"),
    (raw("chat_template.jinja", "folder"), "template"),
    *((raw("evaluation.json", content), "evaluation.json") for content in (b"{", b"[]", "folder")),
]


@pytest.mark.parametrize("number", range(len(CHECKPOINTS)))
def test_checkpoints(number, policy, elsewhere, capsys, monkeypatch):
    """Bug: a broken or hostile checkpoint ends in a traceback, runs for ever, fills the memory, or
    is used as if it were whole."""
    monkeypatch.setattr(tokenizer, "TEMPLATE_SECONDS", 0.3, raising=False)
    damage, named = CHECKPOINTS[number]
    shutil.copytree(policy, elsewhere / "policy")
    damage(elsewhere / "policy")
    (elsewhere / "data.jsonl").write_bytes(LINE)
    before = left_behind(elsewhere)
    scripts = [(train_sft.main, ["--data", "data.jsonl", "--out", "new"]),
               (build_data.main, ["--out", "new"]), (train_rl.main, ["--out", "new"]),
               (evaluate.main, ["--responses", "new"])]
    if named == "evaluation.json":
        scripts = scripts[:1]  # the only other reader, train_rl, reads it in the same way
    for main, more in scripts if number % 5 == 0 else [scripts[number % len(scripts)], scripts[0]]:
        assert named in refusal(main, ["--model", "policy", *SMALL, *more], capsys)
        assert left_behind(elsewhere) == before


# ---- canaries: does anything run that came with a download? ------------------------------------

class Canary:
    """Unpickled, it leaves a file."""
    def __reduce__(self):
        return os.mkdir, ("canary",)


JINJA = ["{{ messages.__class__.__base__.__subclasses__() }}",
         "{{ raise_exception.__globals__['datetime'].sys.modules['os'].mkdir('canary') }}",
         "{{ cycler.__init__.__globals__.os.mkdir('canary') }}",
         "{{ lipsum.__globals__['os'].mkdir('canary') }}",
         "{{ self._TemplateReference__context.eval_ctx }}",
         "{{ messages | map(attribute='__class__.__mro__') | list }}"
         "{{ ().__class__.__base__.__subclasses__()[0]('canary') }}",
         "{{ ('{0.__init__.__globals__[os]}' | format(cycler)) }}"
         "{{ joiner.__init__.__globals__['os'].mkdir('canary') }}"]


@pytest.mark.parametrize(
    "damage",
    [raw(W, pickle.dumps(Canary())),
     each(raw(W, None), raw("pytorch_model.bin", pickle.dumps(Canary()))),
     each(raw(W, None), raw("model.pt", pickle.dumps(Canary()))),
     each(shards({NORM: "pytorch_model.bin"}), raw("pytorch_model.bin", pickle.dumps(Canary()))),
     each(shards({NORM: "x.safetensors"}), raw("x.safetensors", pickle.dumps(Canary()))),
     raw(T, pickle.dumps(Canary())), change(T, __reduce__=["os.mkdir", ["canary"]],
                                            model={"type": "__import__('os').mkdir('canary')"}),
     change(T, pre_tokenizer={"type": "Custom", "code": "__import__('os').mkdir('canary')"}),
     raw(C, pickle.dumps(Canary())), raw(TC, pickle.dumps(Canary())),
     change(C, auto_map={"AutoModelForCausalLM": "evil.Model"}, architectures=["evil.Model"]),
     *(change(TC, chat_template=text) for text in JINJA),
     *(change(T, chat_template=text, model=None) for text in JINJA[:1])])
def test_nothing_is_executed(damage, policy, elsewhere, capsys):
    """Bug: loading a checkpoint runs code that a stranger put into it."""
    shutil.copytree(policy, elsewhere / "policy")
    (elsewhere / "policy" / "evil.py").write_text("import os; os.mkdir('canary')")
    damage(elsewhere / "policy")
    refusal(evaluate.main, ["--model", "policy", *SMALL], capsys)
    assert not (elsewhere / "canary").exists()
    pickle.loads(pickle.dumps(Canary()))
    assert (elsewhere / "canary").exists()  # the canary does sing


def test_state_that_is_a_pickle(policy, elsewhere, capsys):
    """Bug: a state with a right checksum is unpickled, or a stranger's optimizer.pt beside it is
    opened."""
    write_jsonl("data.jsonl", [GOOD])
    flags = ["--model", policy, *SMALL, "--data", "data.jsonl", "--out", "new"]
    train_sft.main([*flags, "--steps", "1"])
    newest, = state.saved_steps(elsewhere / "new" / "state")
    (newest / "optimizer.pt").write_bytes(pickle.dumps(Canary()))
    (newest / "tensors.safetensors").write_bytes(pickle.dumps(Canary()))
    write_json(newest / "manifest.json", {name: state.fingerprint(newest / name)
                                          for name in ("tensors.safetensors", "state.json")})
    with pytest.raises(InputError, match="every saved state is damaged"):
        train_sft.main([*flags, "--resume"])
    assert not (elsewhere / "canary").exists()
