"""What is installed with the package: packages that only some commands need, and what the package says of itself."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest

from minionerec import pipeline
from minionerec.cli import COMMANDS, gap, levels, main
from minionerec.config import Config, extras
from minionerec.errors import ConfigError
from tests.launch import ENVIRONMENT, ROOT

pytestmark = pytest.mark.fast

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"faiss-cpu": "faiss", "scikit-learn": "sklearn", "prometheus-client": "prometheus_client"}
ROOMS = ("artifacts", "cli", "config", "data", "model", "prompts", "recommend", "serve", "tree")  # of recommending and serving

# What counts interactions needs scipy; the rest of recommending imports it only for a run with a mixture.
COUNTS, COUNTING = ROOT / "minionerec/recommend/cache", [ROOT / "minionerec/recommend/mixing.py"]


def names(requirements):
    listed = (re.split(r"[\[<>=;@ ]", requirement)[0] for requirement in requirements)
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in listed}


def test_every_extra_package_is_known_with_an_extra_that_brings_it():
    optional = PROJECT["optional-dependencies"]
    for package, extra in extras._EXTRA_OF.items():
        assert package in {*names(optional[extra]), "starlette"}, f"{package} is not in {extra}"  # FastAPI brings it
    for stage, packages in extras._NEEDED.items():
        assert set(packages) <= names(optional["report" if stage == "report" else "train"])
    assert not names(PROJECT["dependencies"]) & set(extras._EXTRA_OF)


def top_level_imports(path):
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_recommending_and_serving_import_no_package_of_an_extra():
    allowed = {"fastapi", "prometheus_client", "starlette", "uvicorn"}
    for room in ROOMS:
        files = [*(ROOT / "minionerec" / room).rglob("*.py"), *(ROOT / "minionerec").glob(f"{room}.py")]
        for path in files:
            if path in COUNTING or path.is_relative_to(COUNTS):
                continue
            imported = set(top_level_imports(path)) & set(extras._EXTRA_OF)
            assert imported <= (allowed if room == "serve" else set()), path
            assert not re.search(r"^from minionerec\.recommend\.(cache|mixing) ", path.read_text("utf-8"), re.MULTILINE), path


def test_what_answers_at_once_imports_no_torch():
    """The package, its command line, the metrics and the rewards, in one process, one after the other."""
    modules = ("minionerec", "minionerec.cli", "minionerec.eval", "minionerec.eval.calc_level", "minionerec.rl.rewards")
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if slow := {'torch', 'transformers'} & {*sys.modules}: sys.exit(f'{name} imports {slow}')"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stage_without_its_packages_is_refused_before_it_begins(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trl", None)
    config = Config(name="run", out=str(tmp_path))
    message = r"the stage rl needs trl, not installed here\. Install the extra train: pip install 'minionerec\[train\]'\."
    with pytest.raises(ConfigError, match=message):
        pipeline.run(config, ("data", "rl"))
    assert not any(tmp_path.iterdir())


def test_a_command_without_its_packages_says_what_to_install(monkeypatch, capsys):
    def run(name):
        def fail(**options):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr("minionerec.cli.COMMANDS", {"presets": COMMANDS["presets"].__class__("", fail, takes_config=False)})
        status = main(["presets"])
        return status, " ".join(capsys.readouterr().err.split())

    status, message = run("plotly.graph_objects")
    assert status == 2 and message.startswith("ConfigError: this command needs plotly, not installed here. Install the extra")
    assert message.endswith("pip install 'minionerec[report]'.")
    with pytest.raises(ModuleNotFoundError, match="of_ours"):  # a mistake of our own is not hidden
        run("minionerec.of_ours")


@pytest.mark.parametrize(("entry", "name"), [(levels, "levels"), (gap, "gap")])
def test_levels_and_gap_are_commands_of_their_own(entry, name, monkeypatch, capsys):
    assert PROJECT["scripts"][f"minionerec-{name}"] == f"minionerec.cli:{name}"
    monkeypatch.setattr(sys, "argv", [f"minionerec-{name}", "--help"])
    assert entry() == 0
    assert capsys.readouterr().out.startswith(f"usage: minionerec {name} ")


def test_the_page_of_the_package_has_no_link_that_an_index_cannot_follow():
    page = (ROOT / PROJECT["readme"]).read_text()
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert all(link.startswith("https://") for link in links)
    shared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    for folder, name in re.findall(r'"\$share/(\w+)/([\w.]+)"', page):
        assert f"{folder}/{name}" in shared[f"share/minionerec/{folder}"] and (ROOT / folder / name).is_file()
