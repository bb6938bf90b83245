"""Links, files, commands and options that pages, presets and scripts name exist; a printed page is as its script prints it."""

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from minionerec import presets
from minionerec.cli.mistakes import FLAGS, check_words
from minionerec.cli.table import COMMANDS
from minionerec.config import Config
from minionerec.config.fields import field_types
from tests.launch import ROOT

pytestmark = pytest.mark.fast

PAGES = ["README.md", "CHANGELOG.md", "data/README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
FOLDERS = ("benchmarks", "data", "docs", "eval", "minionerec", "rl", "scripts", "sft", "sid", "tests")
CODE = [path for kind in ("py", "yaml") for path in (ROOT / "minionerec").rglob(f"*.{kind}")]
CODE += [path for folder in FOLDERS[:-1] for kind in ("py", "sh", "yaml") for path in (ROOT / folder).glob(f"*.{kind}")]
FIELDS = field_types(Config)
SECTIONS = {name.partition(".")[0] for name in FIELDS if "." in name}
ENTRIES = {
    "data/prepare.py": "data prepare",
    "sid/build.py": "sid",
    "sid/compare.py": "sid compare",
    "sft/train.py": "sft",
    "rl/train.py": "rl",
    "eval/predict.py": "eval",
    "eval/calc_level.py": "levels",
    "eval/paper_gap.py": "gap",
    "scripts/run.sh": "run",
    "scripts/sft.sh": "sft",
    "scripts/rl.sh": "rl",
    "scripts/evaluate.sh": "eval",
}
PLACEHOLDER = re.compile(r"[A-Z]{2}|[$|]|\.\.\.")  # of a value that the reader fills in


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_page_of_tasks_is_what_the_script_prints():
    spec = importlib.util.spec_from_file_location("task_examples", ROOT / "scripts/task_examples.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert text_of("docs/tasks.md") == script.page() + "\n"


@cache
def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists() and (not anchor or anchor in anchors(target.resolve())), link


def test_files_that_are_named_exist():
    named = re.compile(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:md|py|sh|yaml|ipynb|png))")
    for path in [*(ROOT / page for page in PAGES), *CODE]:
        for file in named.findall(path.read_text(encoding="utf-8")):
            there = any((base / file).exists() for base in (ROOT, ROOT / "minionerec", path.parent))
            assert there or "NAME" in file or file == "tests/x.py", f"{path}: {file}"


def commands(page: str) -> list[list[str]]:
    """The command lines of a page as words, from its blocks and from code within a sentence."""
    text = text_of(page)
    block = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    blocks = [body.replace("\\\n", " ") for kind, body in block.findall(text) if kind in ("", "bash")]
    lines = [line for body in blocks for line in body.splitlines()]
    lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", block.sub("", text))]
    found = []
    for line in lines:
        if re.search(rf"\bminionerec [a-z]|benchmarks/\w+\.py|{'|'.join(ENTRIES)}", line):
            words = shlex.split(re.sub(r"[;|&]+(?= |$)", " ; ", line), comments=True)
            found += [part.split("\0") for part in "\0".join(words).split("\0;\0")]
    return found


def name_and_options(words: list[str]) -> tuple[str, list[str]] | None:
    """The command that words call, and what follows it; None if they call none."""
    for at, word in enumerate(words):
        if word in ENTRIES:
            return ENTRIES[word], words[at + 1 :]
        if word == "minionerec":
            for length in (2, 1):
                if (name := " ".join(words[at + 1 : at + 1 + length])) in COMMANDS:
                    return name, words[at + 1 + length :]
    return None


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_that_pages_give_them(page):
    for words in commands(page):
        name, rest = name_and_options(words) or ("", [])
        for word, after in zip(rest, [*rest[1:], ""], strict=False):
            option, equals, value = word.lstrip("[").partition("=")  # `[--out DIR]` may be left out
            if option.startswith("--") and len(option) > 2 and option != "--help":
                value = value if equals else "" if after.startswith("-") else after if "[" in after else after.rstrip("]")
                check(name, option, value)


@pytest.mark.parametrize("page", PAGES)
def test_benchmarks_have_the_options_that_pages_give_them(page):
    common = text_of("benchmarks/setting.py")
    for words in commands(page):
        for at, script in enumerate(words):
            if script.startswith("benchmarks/") and script.endswith(".py"):
                options = [word[2:].partition("=")[0] for word in words[at + 1 :] if re.match(r"--\S+$", word)]
                for name in (option for option in options if not known(option)):  # fields go behind the options
                    written = (f'"{mark}{name}"' for mark in ("--", ""))
                    assert any(option in text_of(script) + common for option in written), f"{script} --{name}"


def check(name: str, option: str, value: str) -> None:
    """Fail if a command has no such option, no such preset, or an option of the configuration cannot have the value."""
    command = COMMANDS[name]
    own = {*command.options, *(f"--no-{it[2:]}" for it, spec in command.options.items() if "action" in spec)}
    assert option in own or command.takes_config, f"minionerec {name} {option}"
    if option == "--config":
        preset = value.removesuffix(".yaml")
        assert preset in presets.files() or "/" in value or PLACEHOLDER.search(value), value
    elif option not in (*own, *FLAGS) and "*" not in option:
        assert known(option.removeprefix("--").rstrip("+")), f"minionerec {name} {option}"
        if value and not PLACEHOLDER.search(value):
            check_words("run", [f"{option}={value}"])


def test_entry_files_run_the_commands_that_the_table_of_readme_names():
    for command, entry in re.findall(r"^\| `([a-z ]+)` \| `(\w+/\w+\.py)` \|", text_of("README.md"), re.MULTILINE):
        assert ENTRIES[entry] == command
    for entry, command in ENTRIES.items():
        words = ", ".join(f'"{word}"' for word in command.split())
        assert entry.endswith(".sh") or f"main([{words}, *sys.argv[1:]])" in text_of(entry), entry


def known(field: str) -> bool:
    """Whether the configuration has this field, or a mapping that takes such an entry."""
    return field in FIELDS or str(FIELDS.get(field.rpartition(".")[0])).startswith("dict[")


def test_fields_that_are_named_exist():
    option = re.compile(r"(?<![\w-])--([a-z0-9_]+(?:\.[a-z0-9_]+)+)(?![\w(])")
    code = re.compile(rf"`((?:{'|'.join(SECTIONS)})(?:\.[a-z0-9_]+)+)(?::? [^`]*)?`")
    for path in [*(ROOT / page for page in PAGES), *CODE]:
        text = path.read_text(encoding="utf-8")
        renamed = path.suffix == ".py" or path.name == "CHANGELOG.md"  # `sft.x` may be a module, or a field of earlier
        for field in option.findall(text) + ([] if renamed else code.findall(text)):
            file = field.endswith((".field", ".safetensors", ".json", ".parquet", ".jsonl", ".py"))
            assert file or known(field), f"{path}: {field}"


def test_what_a_shell_would_take_for_a_pattern_is_quoted():
    """`--sft.tasks [a,b]` names a file called `a` in bash, and nothing in zsh."""
    bare_value = r"(?<![\w-])--[a-z_]+\.[a-z_.]+\+?[ =]\\?\s*"
    for path in [*(ROOT / page for page in PAGES), *CODE]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":  # messages: one literal goes on in the next
            text = re.sub(r'"\s*\n\s*f?"', "", text) if ROOT / "minionerec" in path.parents else ""
        else:
            text = re.sub(r'"[^"\n]*"', "", text)
        opens = r"\[" if path.suffix == ".py" else r"[\[{]"  # in code braces are Python's
        assert not (found := re.search(bare_value + opens, text)), f"{path}: {found}"
    for page in PAGES:
        for body in re.findall(r"^```bash\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE):
            bare = re.sub(r"\"[^\"]*\"|'[^']*'|#.*", "", body)
            assert not re.search(r"(?<=\s)[\[{]\S", bare), page
