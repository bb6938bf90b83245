"""The chat template of a tokenizer: a program that others wrote, tried on one message before it renders any prompt."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jinja2
import psutil
from transformers import PreTrainedTokenizerBase

from minionerec.errors import ConfigError

_TRIAL = "Which item is next?"
_STEPS = 100_000  # lines of the compiled template that one message may take; published templates take some hundred
_MEMORY = 1 << 28  # bytes that rendering one message may add


def chat_renderer(tokenizer: PreTrainedTokenizerBase) -> Callable[[str, str], str]:
    """A function of instruction and question that returns the whole prompt's text.

    Raises:
        ConfigError: the tokenizer has no chat template, or its template is broken, endless or leaves out the message.
    """
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        raise ConfigError(
            "prompts.style is chat, but the model's tokenizer has no chat template. Take an instruct model, or prompts.style "
            "plain."
        )

    def render(instruction: str, question: str) -> str:
        message = [{"role": "user", "content": f"{instruction}\n\n{question}"}]
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    try:
        for program in template.values() if isinstance(template, dict) else [template]:
            # One power of large numbers may take hours, and nothing can interrupt it.
            if any(token == "**" for _, kind, token in jinja2.Environment().lex(program) if kind == "operator"):
                raise ConfigError("it computes powers")
        with _bounded():
            text = render("", _TRIAL)
        if _TRIAL not in text:
            raise ConfigError(f"it leaves out the message and gives {text[:60]!r}")
    except Exception as error:
        reason = f"{type(error).__name__}: " * (not isinstance(error, ConfigError)) + " ".join(str(error).split())[:200]
        raise ConfigError(
            f"prompts.style is chat, but the chat template of the model's tokenizer cannot be used ({reason}). Take the "
            "template of the original model, or prompts.style plain."
        ) from error
    return render


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop a template that runs on or that fills the memory."""
    steps, traced_before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != "<template>":
            return None  # not the template's: run it untraced
        steps += 1
        if steps > _STEPS:
            raise ConfigError(f"it does not end within {_STEPS} steps")
        return trace

    with _at_most(_MEMORY):
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(traced_before)


@contextmanager
def _at_most(memory: int) -> Iterator[None]:
    """Let the process take so many bytes more than it has, and no more; Windows has no such limit.

    The limit is the whole process's: in a thread it is left out, as a service that loads another model answers meanwhile.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = (soft, hard, psutil.Process().memory_info().vms + memory)
    resource.setrlimit(resource.RLIMIT_AS, (min(bound for bound in bounds if bound != resource.RLIM_INFINITY), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
