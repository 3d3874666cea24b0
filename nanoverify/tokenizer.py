"""Text to token ids and back, and the chat prompt, as the checkpoint's own files say.

    prompt("What is 2 + 2?")   ->  ids of  <|im_start|>user\\nWhat is 2 + 2?<|im_end|>\\n<|im_start|>assistant\\n
    response + [end_id]        ->  what the assistant writes, and how it stops

The template is untrusted code from a download: it runs in jinja2's sandbox, set up as transformers does it. As in
transformers, the text of a special token inside a message becomes that token: clean questions that come from strangers.

Limits: needs tokenizer.json (the `tokenizers` format); text only, no tools, no documents, one template ("default").
"""
import contextlib
import datetime
import functools
import json
import signal
import sys
import threading

import jinja2
import jinja2.ext
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nanoverify.checkpoint import find_folder
from nanoverify.files import InputError, read_json


PROBE = "nanoverify"  # a text that no template holds by itself
TEMPLATE_SECONDS = 10  # a chat template that takes longer is refused
LONGEST = 10 ** 6  # of what a template multiplies: 'a' * 10 ** 12 would fill the memory


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox keeps a template from Python's internals, but not from huge products and powers."""
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context, operator, left, right):
        sizes = [len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right)]
        if operator == "**" and sizes[1] > 64 or sizes[0] * sizes[1] > LONGEST and any(hasattr(x, "__len__") for x in (left, right)):
            raise jinja2.TemplateError("a result is too large")
        return super().call_binop(context, operator, left, right)


@contextlib.contextmanager
def time_limit(seconds: float):
    """TimeoutError in a block that takes longer, where the system has alarms (not on Windows, not outside the main thread)."""
    def stop(number, frame):
        raise TimeoutError(f"no end after {seconds} s")

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's part in some templates; here it changes nothing."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def compile_template(source: str) -> jinja2.Template:
    if not isinstance(source, str):
        raise ValueError(f"chat_template is no text: {source!r:.80}")

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):  # jinja2's own escapes HTML
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        with time_limit(TEMPLATE_SECONDS):
            return environment.from_string(source)
    except Exception as error:  # it becomes Python code, and what is nested too deep fails there: SyntaxError, RecursionError
        raise ValueError(f"chat template: {error}")


def read_template(folder, config: dict) -> str | None:
    """chat_template.jinja; or the field of tokenizer_config.json, a string or a list of named ones;
    or the older chat_template.json. ValueError: none of the named ones is the default."""
    path, older = folder / "chat_template.jinja", folder / "chat_template.json"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template, named = config.get("chat_template"), {}
    if template is None and older.exists():
        template = read_json(older).get("chat_template")
        print(f"{older}: used, for tokenizer_config.json has no chat template", file=sys.stderr)
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        if "default" not in named:
            raise ValueError(f"chat_template: none of the named templates {sorted(named)!r:.200} "
                             "is called 'default'; save the one to use as chat_template.jinja")
        template = named["default"]
    if not isinstance(template, (str, type(None))):
        raise ValueError(f"chat_template is no text: {template!r:.80}")
    if named:
        print(f"{folder}: of the named chat templates {sorted(named)!r:.200}, 'default' is used",
              file=sys.stderr)
    return template


def as_list(ids) -> list[int]:
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(id) is int for id in ids):
        raise ValueError(f"eos_token_id or pad_token_id is no number: {ids!r:.80}")
    return ids


class Tokenizer:
    """encode, decode, prompt, and the ids with a role: stop_ids, end_id, pad_id. `load` makes one from a folder."""

    @classmethod
    def load(cls, folder) -> "Tokenizer":
        folder = find_folder(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise InputError(f"{path}: not found; transformers can make it: "
                             "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)")
        try:
            raw = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # tokenizers raises bare Exception, and its panics are not even that
            if isinstance(error, KeyboardInterrupt):
                raise
            raise InputError(f"{path}: not a readable tokenizer: {error}")
        if not raw.get_vocab():
            raise InputError(f"{path}: its vocabulary is empty")
        files = ("special_tokens_map", "tokenizer_config", "generation_config", "config")
        special_map, config, generation, model = (
            read_json(folder / f"{name}.json") if (folder / f"{name}.json").exists() else {} for name in files)
        try:
            return cls(raw, {**special_map, **config}, generation, model, read_template(folder, config))
        except (ValueError, TypeError, KeyError, OSError, jinja2.TemplateError) as error:
            raise InputError(f"{folder}: tokenizer_config.json, generation_config.json, config.json or chat template: "
                             f"{type(error).__name__}: {error}")

    def __init__(self, raw, config: dict, generation: dict, model: dict, template: str | None):
        """raw: a tokenizers.Tokenizer. config, generation, model: tokenizer_config, generation_config and config.json."""
        raw.no_truncation()  # a file saved in the middle of some training can cut every text
        raw.no_padding()
        self.raw = raw
        self.template = compile_template(template) if template else None
        # {"bos_token": "<s>", ...}; older files write {"content": "<s>", ...} for "<s>"
        self.special = {name: token["content"] if isinstance(token, dict) else token for name, token in config.items()
                        if name.endswith("_token") and isinstance(token, (str, dict))}
        # Ids from here on exist only in the model, whose vocabulary is often padded: sampler and scorer mask them.
        self.vocab_size = min(max(raw.get_vocab().values()) + 1, model.get("vocab_size", float("inf")))

        eos = self.special_id("eos_token")
        stops = as_list(generation.get("eos_token_id")) + as_list(model.get("eos_token_id")) + as_list(eos)
        if not stops:
            raise ValueError("no end-of-sequence token is given")
        within = [stop for stop in stops if 0 <= stop < self.vocab_size]  # others are never sampled
        if not within:
            raise ValueError(f"no end-of-sequence id among {stops!r:.80} is below {self.vocab_size}, the size of the vocabulary")
        self.stop_ids = frozenset(within)
        self.end_id = self.find_end_id(default=eos if eos in within else within[0])
        if self.end_id not in self.stop_ids:
            print(f"the chat template ends turns with {raw.id_to_token(self.end_id)!r}, which no "
                  "eos_token_id names: it stops, too", file=sys.stderr)
            self.stop_ids |= {self.end_id}
        # Padding that equals a stop id invites code that finds ends by id; masks here come from lengths, so any other id will do.
        pads = as_list(self.special_id("pad_token")) + as_list(generation.get("pad_token_id"))
        pads += range(len(self.stop_ids) + 1)
        self.pad_id = next((pad for pad in pads if pad not in self.stop_ids and 0 <= pad < self.vocab_size), None)
        if self.pad_id is None:
            raise ValueError("every id of the vocabulary ends a sequence")
        bos = self.special_id("bos_token")
        adds_bos = config.get("add_bos_token")
        if adds_bos is None:
            adds_bos = raw.encode("").ids[:1] == [bos]
        self.bos_ids = [bos] if adds_bos and bos is not None else []

    def special_id(self, name: str) -> int | None:
        return self.raw.token_to_id(self.special.get(name, ""))

    def find_end_id(self, default: int) -> int:
        """The first stop id or added token that the template writes after an assistant message."""
        if self.template is None:
            return default
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        try:
            _, found, tail = self.render(turns, add_generation_prompt=False).rpartition(PROBE)
        except InputError:  # a template for single questions only
            return default
        added = self.raw.get_added_tokens_decoder()
        ends = self.stop_ids | {id for id, token in added.items() if token.content.strip()}
        return next((id for id in self.encode(tail if found else "") if id in ends), default)

    def encode(self, text: str) -> list[int]:
        """The text's own ids: no BOS, no EOS."""
        try:
            ids = self.raw.encode(text, add_special_tokens=False).ids
        except Exception as error:  # a lone surrogate from a template, a vocabulary without its own unknown token
            raise InputError(f"tokenizer.json cannot encode the text: {error}")
        if max(ids, default=0) >= self.vocab_size:  # the model has no row for it: it would crash, on a GPU for good
            raise InputError(f"tokenizer.json does not fit config.json: it makes token {max(ids)} where the vocabulary ends with {self.vocab_size - 1}")
        return ids

    def decode(self, ids) -> str:
        """The text without stop ids, which not every tokenizer.json marks as special, and without
        special tokens. Spaces and punctuation stay as they are (no clean-up)."""
        kept = [id for id in ids if id not in self.stop_ids]
        return self.raw.decode(kept, skip_special_tokens=True)

    def render(self, messages: list[dict], add_generation_prompt: bool = True, **variables) -> str:
        """The chat template's text for [{"role": ..., "content": ...}, ...]; BOS, if any, is part of it."""
        if self.template is None:
            raise InputError("the checkpoint has no chat template")
        try:
            with time_limit(TEMPLATE_SECONDS):
                return self.template.render(messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt,
                                            **{**self.special, **variables})
        except Exception as error:  # a template is code and can fail in any way
            raise InputError(f"the chat template refuses these messages: {error}")

    @functools.cached_property
    def keeps_questions(self) -> bool:
        return PROBE in self.render([{"role": "user", "content": PROBE}])

    def prompt(self, user: str) -> list[int]:
        """Ids up to where the assistant begins. A base model without a template gets the text and a newline."""
        if self.template is None:
            return self.bos_ids + self.encode(user + "\n")
        if not self.keeps_questions:
            raise InputError("the chat template loses the question: what the user says is not in "
                             "the prompt")
        return self.encode(self.render([{"role": "user", "content": user}]))
