import dataclasses
import html
import json
import re
import shutil
from html.parser import HTMLParser
from typing import get_args

import pytest
import yaml

from minionerec.artifacts import Manifest, Recipe
from minionerec.commands import result_table
from minionerec.config import BaselineConfig, BaselineName, Config, EvalConfig, PromptsConfig
from minionerec.errors import ArtifactError
from minionerec.recommend.variants import STAGES, VARIANTS
from minionerec.report.build import write_report
from minionerec.report.evaluated import LABELS
from minionerec.report.page import PLOTLY_FILE
from tests.report.run_folder import NASTY, make_run
from tests.small import reseal


def plain(text: str) -> str:
    return text.translate({ord("\N{MINUS SIGN}"): "-", ord("\N{EN DASH}"): "-"})


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.hidden = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        if not self.hidden:
            self.text.append(data)

    @property
    def words(self) -> str:
        return plain(re.sub(r"\s+", " ", " ".join(self.text)))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    config = make_run(tmp_path_factory.mktemp("full"), collide=True)
    manifest, made = write_report(config)
    assert made
    return config, manifest, Page(config.folder / "report/index.html")


@pytest.fixture(scope="module")
def without_rl(tmp_path_factory):
    config = make_run(tmp_path_factory.mktemp("sft"), rl=False)
    write_report(config)
    return config, Page(config.folder / "report/index.html")


@pytest.fixture(scope="module")
def altered(tmp_path_factory):
    """A run asked in another style, whose RL was made from another SFT and evaluated on fewer users than examples."""
    folder = tmp_path_factory.mktemp("altered")
    config = make_run(folder, users=8, given={"prompts": PromptsConfig(eval_style="released")})
    reseal(folder / "rl", inputs={**Manifest.load(folder / "rl").inputs, "sft": "0" * 64})
    path = folder / "eval/rl/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"users": 5}))
    reseal(folder / "eval/rl")
    write_report(config)
    return folder


def test_every_section_is_there(full):
    _, manifest, page = full
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == [
        "results", "levels", "more", "training", "sids", "examples", "run",
    ]  # fmt: skip
    for words in (
        "Popularity",
        "Repeat last",
        "SFT + RL",
        "RL - SFT, paired",
        "Over popularity",
        "Drop-off",
        "Perplexity",
        "target popularity",
        "coverage",
        "Where the lists lost their target",
        "max_history",
    ):
        assert words in page.words
    assert sum(attributes.get("class") == "plot" for _, attributes in page.tags) >= 3 + 5
    assert sum(attributes.get("class") == "card user" for _, attributes in page.tags) == 10
    assert manifest.stage == "report" and set(manifest.inputs) == {
        "data", "sid", "sft", "rl", "eval/popularity", "eval/repeat", "eval/sft", "eval/rl",
    }  # fmt: skip


def test_values_are_those_of_the_metrics(full):
    config, _, page = full
    for name in ("popularity", "repeat", "sft", "rl"):
        metrics = json.loads((config.folder / "eval" / name / "metrics.json").read_text())
        for part in ("sid", "item"):  # SIDs collide in this run, so both tables are shown
            for cell in metrics[part].values():
                assert f"{cell['value']:.4f} {cell['low']:.4f}-{cell['high']:.4f}" in page.words


def test_no_python_object_leaks_into_the_page(full):
    assert not re.search(r"built-in|object at 0x|Undefined|\bNone\b|\bnan\b", full[2].words)


def test_titles_are_escaped(full, without_rl):
    for page in (full[2], without_rl[1]):
        assert NASTY in page.words
    raw = (full[0].folder / "report/index.html").read_text(encoding="utf-8")
    assert NASTY not in raw and "&lt;script&gt;alert" in raw


def test_nothing_is_fetched(full):
    config, _, page = full
    for tag, attributes in page.tags:
        if tag in ("script", "img", "iframe", "link", "source", "object", "embed"):
            assert {attributes.get(name) for name in ("src", "href", "data")} <= {None, PLOTLY_FILE}
        assert not (attributes.get("href") or "#").startswith(("http:", "https:", "//"))
    script = (config.folder / "report" / PLOTLY_FILE).read_text(encoding="utf-8")
    pages = list((config.folder / "report").glob("*.html"))
    assert "Plotly" in script and len(script) > 20 * max(page.stat().st_size for page in pages)
    style = re.search(r"<style>(.*?)</style>", (config.folder / "report/index.html").read_text(encoding="utf-8"), re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]


def test_plot_data_is_json(full):
    raw = (full[0].folder / "report/index.html").read_text(encoding="utf-8")
    plots = re.findall(r'<script type="application/json">(.*?)</script>', raw)
    assert plots and all(json.loads(plot)["data"] for plot in plots)


def test_equal_inputs_give_equal_bytes_and_a_current_page_is_kept(full):
    config, manifest, _ = full
    again, made = write_report(config)
    assert not made and again == manifest
    path = config.folder / "report/index.html"
    before = path.read_bytes()
    shutil.rmtree(config.folder / "report")
    _, made = write_report(config)
    assert made and path.read_bytes() == before


def test_without_rl_the_page_says_what_is_missing(without_rl):
    config, page = without_rl
    assert "Not in this run, and so not on this page: rl, eval/skip, eval/text, eval/mixture, eval/rl." in page.words
    assert "RL - SFT" not in page.words and "Reinforcement learning" not in page.words
    assert "Metrics on SIDs are equal to these." in page.words
    assert "rl" not in Manifest.load(config.folder / "report").inputs


def test_a_mixture_of_an_older_model_is_not_on_the_page(tmp_path):
    config = make_run(tmp_path / "run", rl=False, users=12)
    folder = config.folder
    inputs = {name: Manifest.load(folder / name).digest for name in ("data", "sid", "sft")}
    with Recipe("mixture/sft", folder / "mixture/sft", config.section("mixture"), inputs, 0).write():
        pass
    shutil.copytree(folder / "eval/sft", folder / "eval/sft-mixture")
    inputs["mixture/sft"] = Manifest.load(folder / "mixture/sft").digest
    reseal(folder / "eval/sft-mixture", inputs=inputs)
    write_report(config)
    words = Page(folder / "report/index.html").words
    assert "SFT, mixed" in words and "another sft" not in words
    reseal(folder / "sft", digest="1" * 64)  # trained again
    assert write_report(config)[1]
    words = Page(folder / "report/index.html").words
    assert "SFT, mixed" not in words
    for name in ("mixture/sft", "eval/sft-mixture"):
        again = "Run minionerec mixture and minionerec eval."
        assert f"Not on this page: {name}, made from another sft than the run has. {again}" in words
    assert "eval/sft was made from another sft than the one in this folder: run eval/sft again." in words
    shutil.rmtree(folder / "eval/sft-mixture")
    assert write_report(config)[1]
    assert "eval/sft-mixture" not in Page(folder / "report/index.html").words


def test_content_recommenders_of_named_parts_are_on_the_page(tmp_path):
    config = make_run(tmp_path / "run", rl=False, users=12)
    folder, title = config.folder, "id-additive-dot"
    with Recipe(f"lego/lists/{title}", folder / "lego/lists" / title, config.section("lego"), {}, 0).write():
        pass
    shutil.copytree(folder / "eval/popularity", folder / f"eval/lego-{title}")
    inputs = {name: Manifest.load(folder / name).digest for name in ("data", "sid", f"lego/lists/{title}")}
    reseal(folder / f"eval/lego-{title}", inputs=inputs)
    write_report(config)
    words = Page(folder / "report/index.html").words
    assert f"lego-{title}" in words and f"lego/lists/{title}" in words


def test_only_differences_beyond_noise_are_coloured(full):
    raw = plain((full[0].folder / "report/index.html").read_text(encoding="utf-8"))
    cells = re.findall(
        r'<td class="n (\w*)" role="cell" data-at="@\d+">([+-][\d.]+)<small>([+-][\d.]+) to ([+-][\d.]+)</small>', raw
    )
    assert len(cells) == 30  # on SIDs and on items; no list here has 50 places
    assert "lists of 40 and 40 places: cut-offs beyond 40 are left out" in full[2].words
    for colour, value, low, high in cells:
        value, low, high = (float(text) for text in (value, low, high))
        if low > 0 or high < 0:
            assert colour == ("gain" if value > 0 else "loss")
        elif low < 0 < high:
            assert colour == ""


def test_lists_of_ten_have_no_column_beyond_ten(tmp_path):
    config = make_run(tmp_path, users=20, given={"eval": EvalConfig(num_beams=10, resamples=100)})
    metrics = json.loads((tmp_path / "eval/rl/metrics.json").read_text())
    assert {name.partition("@")[2] for name in metrics["sid"]} == {"1", "3", "5", "10"}
    write_report(config)
    words = Page(tmp_path / "report/index.html").words
    assert "@10" in words and "@20" not in words and "@50" not in words
    assert "NDCG@20" not in (changed := Page(tmp_path / "report/rl.html").words) and "too short for HR@20 and HR@50" in changed
    columns = [str(column.header) for column in result_table(config).columns]
    assert columns == ["model", "HR@1", "HR@3", "HR@5", "HR@10", "NDCG@10"]
    assert "20 examples" in str(result_table(config).title)


def test_shorter_lists_are_said(full):
    assert "Some lists are shorter than the largest cut-off: " in full[2].words
    assert re.search(r"Repeat last \d+ to \d+ places", full[2].words)


def test_one_sid_for_all_is_no_success(tmp_path):
    config = make_run(tmp_path, users=20, items=5, collide="all")
    write_report(config)
    page = Page(tmp_path / "report/index.html")
    assert "100 % of the items (5 of 5) share their SID with another" in page.words
    assert re.search(r"HR@1 0\.2000 SFT \+ RL, on items", page.words)  # one of five tied items, and not 1.0000
    on_items, on_sids = page.words.split("Metrics on SIDs, as the paper counts")
    assert re.search(r"SFT \+ RL 0\.2000 0\.2000-0\.2000", on_items) and re.search(r"SFT \+ RL 1\.0000 ", on_sids)
    *_, cell = result_table(config).columns[1].cells
    assert cell == "0.2000"


def test_a_share_of_lists_is_shown_with_its_count_and_interval(full):
    assert re.search(r"Exact lists \d+ of 60 proven to be the catalog's top; 95\s%: \d+\.\d% to", full[2].words)
    assert re.search(
        r"Over popularity [+-]0\.\d{4} HR@10 on items, paired: .* p 0\.\d{3}, (within|beyond) noise", full[2].words
    )


def test_a_stage_made_from_another_input_is_noted(altered):
    assert "rl was made from another sft than the one in this folder" in Page(altered / "report/index.html").words


def test_missing_inputs_name_the_command(tmp_path):
    with pytest.raises(ArtifactError, match="minionerec data prepare"):
        write_report(Config(out=str(tmp_path)))


def test_sft_and_rl_on_other_users_are_refused(tmp_path):
    config = make_run(tmp_path, users=8)
    folder = tmp_path / "eval/rl"
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join(lines[1:]), encoding="utf-8")
    reseal(folder)
    with pytest.raises(ArtifactError, match=r"sft/predictions.jsonl has 8 examples, .*rl/predictions.jsonl has 7"):
        write_report(config)
    assert not (tmp_path / "report").exists()


def test_several_examples_of_a_user_are_not_called_users(full, altered):
    assert "Next item of 60 users on the test split" in full[2].words
    assert "Next item of 8 examples of 5 users on the test split" in Page(altered / "report/index.html").words


def test_a_damaged_baseline_names_its_command(tmp_path):
    config = make_run(tmp_path, rl=False, users=8, baseline=BaselineConfig(model="markov"))
    (tmp_path / "baselines/markov/manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"The command: minionerec baseline --baseline.model markov \(same"):
        write_report(config)


def test_damaged_log_is_named(tmp_path):
    config = make_run(tmp_path, users=8)
    log = tmp_path / "sft/log.jsonl"
    log.write_text("x" * log.stat().st_size)
    with pytest.raises(ArtifactError, match=r"log\.jsonl: its content is not what the manifest says.*minionerec sft"):
        write_report(config)
    reseal(tmp_path / "sft")
    with pytest.raises(ArtifactError, match=r"log\.jsonl, line 1: not valid JSON"):
        write_report(config)


def test_the_configuration_is_shown_per_artefact(altered):
    shown = re.search(r"<pre>(.*?)</pre>", (altered / "report/index.html").read_text(encoding="utf-8"), re.DOTALL)
    settings = yaml.safe_load(html.unescape(shown[1]))
    assert settings["sft"]["prompts"]["eval_style"] == "same"  # what it was trained with
    assert settings["eval/sft"]["prompts"]["eval_style"] == "released"


def test_every_plot_of_every_page_says_what_its_axes_are(full):
    pages = list((full[0].folder / "report").glob("*.html"))
    assert len(pages) == 4
    for page in pages:
        for plot in re.findall(r'<script type="application/json">(.*?)</script>', page.read_text(encoding="utf-8")):
            layout = json.loads(plot)["layout"]
            assert layout["xaxis"]["title"]["text"] and layout["yaxis"]["title"]["text"], page


def test_every_page_can_be_read_aloud(full):
    for path in (full[0].folder / "report").glob("*.html"):
        page = Page(path)
        named = {
            tag: [attributes for name, attributes in page.tags if name == tag] for tag in ("html", "nav", "main", "th", "i")
        }
        assert named["html"] == [{"lang": "en"}] and [main["id"] for main in named["main"]] == ["content"]
        assert all(nav["aria-label"] for nav in named["nav"]) and all(cell.get("scope") for cell in named["th"]), path
        assert all(icon.get("aria-label") or icon.get("aria-hidden") for icon in named["i"]), path
        assert all(attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") in ("plot", "scroll"))
        text = path.read_text(encoding="utf-8")
        assert text.count("<table") == len(re.findall(r"<table[^>]*>\s*<caption>[^<]+</caption>", text)), path
        assert text.count('class="plot"') == len(re.findall(r'<figcaption>[^<]+</figcaption>\s*<div class="plot"', text)), path


def test_an_rl_model_that_is_the_sft_model_changed_nothing(tmp_path):
    config = make_run(tmp_path, users=8)
    reseal(tmp_path / "rl", metrics={"steps": 78, "best_step": 0})
    write_report(config)
    words = Page(tmp_path / "report/index.html").words
    assert "What RL changed nothing the SFT model was the best on valid, better than any of 78 steps" in words


def test_pages_have_the_name_of_the_run_not_of_the_command(tmp_path):
    config = make_run(tmp_path, users=8)
    write_report(dataclasses.replace(config, name="preset"))  # as with --config preset --out RUN
    for name in ("index", "rl"):
        words = Page(tmp_path / f"report/{name}.html").words
        assert "demo" in words and "preset" not in words


def test_every_baseline_has_a_label():
    assert {*get_args(BaselineName), *STAGES, *VARIANTS} < set(LABELS)
