"""Text to token ids and back, and the chat prompt, as the checkpoint's own files define them.

    prompt("What is 2 + 2?")   ->  ids of  <|im_start|>user\\nWhat is 2 + 2?<|im_end|>\\n
                                           <|im_start|>assistant\\n
    response + [end_id]        ->  what the assistant writes, and its end

The template is untrusted code from a download. It runs in jinja2's sandbox, set up as transformers
does it. As in transformers, the text of a special token inside a message becomes that token, so
clean questions that come from strangers.

Limits: needs tokenizer.json (the `tokenizers` format); text only, no tools, no documents, one
template ("default").
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
from nanoverify.support.files import InputError, read_json

PROBE = "nanoverify"  # a text that no template contains
TEMPLATE_SECONDS = 10  # a chat template that takes longer is refused
LONGEST = 10 ** 6  # result of a template's product: 'a' * 10 ** 12 would fill the memory


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox denies access to Python's internals; this one also denies huge results."""
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context, operator, left, right):
        sequences = [hasattr(x, "__len__") for x in (left, right)]
        a, b = (len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right))
        if operator == "**" and b > 64 or any(sequences) and a * b > LONGEST:
            raise jinja2.TemplateError("a result is too large")
        return super().call_binop(context, operator, left, right)


@contextlib.contextmanager
def time_limit(seconds: float):
    """TimeoutError in a block that takes longer; without effect on Windows and outside the main
    thread, which have no alarms.
    """
    def stop(number, frame):
        raise TimeoutError(f"no end after {seconds} s")

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "setitimer") or not in_main_thread:
        yield
        return
    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: the assistant's text; here it changes nothing."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def compile_template(source: str) -> jinja2.Template:
    """The chat template, with the functions that transformers gives it. ValueError: not valid."""
    if not isinstance(source, str):
        raise ValueError(f"chat_template is no text: {source!r:.80}")

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True,
                          extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson  # jinja2's own one escapes HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        with time_limit(TEMPLATE_SECONDS):
            return environment.from_string(source)
    except Exception as error:  # it becomes Python code; deep nesting fails there with other errors
        raise ValueError(f"chat template: {error}")


def read_template(folder, config: dict) -> str | None:
    """The source of the chat template; None if there is none.

    It is chat_template.jinja; else a field of tokenizer_config.json, a string or a list of named
    templates; else chat_template.json, an older form. ValueError: none of the named ones is the
    default.
    """
    path, older = folder / "chat_template.jinja", folder / "chat_template.json"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template, named = config.get("chat_template"), {}
    if template is None and older.exists():
        template = read_json(older).get("chat_template")
        print(f"{older}: used, since tokenizer_config.json has no chat template", file=sys.stderr)
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
    """None, one id or a list of ids, as a list. ValueError: other types."""
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(id) is int for id in ids):
        raise ValueError(f"eos_token_id or pad_token_id is no number: {ids!r:.80}")
    return ids


def special_tokens(config: dict) -> dict[str, str]:
    """{"bos_token": "<s>", ...}; older files write {"content": "<s>", ...} instead of "<s>"."""
    tokens = {}
    for name, token in config.items():
        if name.endswith("_token") and isinstance(token, (str, dict)):
            tokens[name] = token["content"] if isinstance(token, dict) else token
    return tokens


class Tokenizer:
    """encode, decode, prompt, and the ids with a role.

    stop_ids    ids that end a response
    end_id      the one of them that the chat template writes
    pad_id      fills the rows of a batch; never a stop id
    bos_ids     [id] or []: before a prompt without a template
    vocab_size  ids from here on exist only in the model, whose vocabulary is often padded:
                sampler and scorer mask them
    """

    @classmethod
    def load(cls, folder) -> "Tokenizer":
        folder = find_folder(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise InputError(f"{path}: not found; transformers can make it: "
                             "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)")
        try:
            raw = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # tokenizers' panics are no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            raise InputError(f"{path}: not a readable tokenizer: {error}")
        if not raw.get_vocab():
            raise InputError(f"{path}: its vocabulary is empty")
        files = ("special_tokens_map", "tokenizer_config", "generation_config", "config")
        paths = [folder / f"{name}.json" for name in files]
        special_map, config, generation, model = (
            read_json(path) if path.exists() else {} for path in paths)
        try:
            template = read_template(folder, config)
            return cls(raw, {**special_map, **config}, generation, model, template)
        except (ValueError, TypeError, KeyError, OSError, jinja2.TemplateError) as error:
            raise InputError(f"{folder}: tokenizer_config.json, generation_config.json, "
                             "config.json or chat template: "
                             f"{type(error).__name__}: {error}")

    def __init__(self, raw, config: dict, generation: dict, model: dict, template: str | None):
        """raw: a tokenizers.Tokenizer.

        config, generation, model: the content of tokenizer_config.json (with
        special_tokens_map.json), generation_config.json and config.json.
        """
        raw.no_truncation()  # a file saved during some training may cut every text
        raw.no_padding()
        self.raw = raw
        self.template = compile_template(template) if template else None
        self.special = special_tokens(config)
        self.vocab_size = min(max(raw.get_vocab().values()) + 1,
                              model.get("vocab_size", float("inf")))

        # ids that end a response
        eos = self.special_id("eos_token")
        stops = [*as_list(generation.get("eos_token_id")), *as_list(model.get("eos_token_id")),
                 *as_list(eos)]
        if not stops:
            raise ValueError("no end-of-sequence token is given")
        within = [stop for stop in stops if 0 <= stop < self.vocab_size]  # others are never sampled
        if not within:
            raise ValueError(f"no end-of-sequence id among {stops!r:.80} is below "
                             f"{self.vocab_size}, the size of the vocabulary")
        self.stop_ids = frozenset(within)
        self.end_id = self.find_end_id(default=eos if eos in within else within[0])
        if self.end_id not in self.stop_ids:
            print(f"the chat template ends turns with {raw.id_to_token(self.end_id)!r}, which no "
                  "eos_token_id names: it stops, too", file=sys.stderr)
            self.stop_ids |= {self.end_id}

        # the masks come from lengths, so any id can pad; a stop id would mislead readers
        pads = as_list(self.special_id("pad_token")) + as_list(generation.get("pad_token_id"))
        pads += range(len(self.stop_ids) + 1)
        usable = (pad for pad in pads if pad not in self.stop_ids and 0 <= pad < self.vocab_size)
        self.pad_id = next(usable, None)
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
            text = self.render(turns, add_generation_prompt=False)
        except InputError:  # a template for single questions only
            return default
        _, probe, tail = text.rpartition(PROBE)
        added = self.raw.get_added_tokens_decoder()
        ends = self.stop_ids | {id for id, token in added.items() if token.content.strip()}
        return next((id for id in self.encode(tail if probe else "") if id in ends), default)

    def encode(self, text: str) -> list[int]:
        """The text's own ids: no BOS, no EOS."""
        try:
            ids = self.raw.encode(text, add_special_tokens=False).ids
        except Exception as error:  # a lone surrogate; a vocabulary that lacks its unknown token
            raise InputError(f"tokenizer.json cannot encode the text: {error}")
        if max(ids, default=0) >= self.vocab_size:  # on a GPU its error is final
            raise InputError(f"tokenizer.json does not fit config.json: it makes token {max(ids)} "
                             f"where the vocabulary ends with {self.vocab_size - 1}")
        return ids

    def decode(self, ids) -> str:
        """The text without special tokens and stop ids, which some tokenizer.json do not mark as
        special. Spaces and punctuation stay as they are (no clean-up).
        """
        kept = [id for id in ids if id not in self.stop_ids]
        return self.raw.decode(kept, skip_special_tokens=True)

    def render(self, messages: list[dict], add_generation_prompt: bool = True, **variables) -> str:
        """The chat template's text for [{"role": ..., "content": ...}, ...]."""
        if self.template is None:
            raise InputError("the checkpoint has no chat template")
        try:
            with time_limit(TEMPLATE_SECONDS):
                return self.template.render(
                    messages=messages, tools=None, documents=None,
                    add_generation_prompt=add_generation_prompt, **{**self.special, **variables})
        except Exception as error:  # a template is code and can fail in any way
            raise InputError(f"the chat template refuses these messages: {error}")

    @functools.cached_property
    def keeps_questions(self) -> bool:
        """Whether the template writes what the user says."""
        return PROBE in self.render([{"role": "user", "content": PROBE}])

    def prompt(self, user: str) -> list[int]:
        """Ids up to the assistant's text. Without a template: the user's text and a newline."""
        if self.template is None:
            return self.bos_ids + self.encode(user + "\n")
        if not self.keeps_questions:
            raise InputError("the chat template loses the question: what the user says is not in "
                             "the prompt")
        return self.encode(self.render([{"role": "user", "content": user}]))
