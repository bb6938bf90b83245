"""Screenshots of report pages, light and dark, at phone and desktop width, with the network off: to look at before a change.

    scripts/python scripts/look.py runs/ml-100k/report --out /tmp/shots
    scripts/python scripts/look.py gap/paper_gap.html runs/mine/sid-inspect/index.html --out /tmp/shots

Takes pages, or folders whose pages are all taken; what is folded on a page is opened. Needs Chromium or Chrome on the machine
(Debian: `apt-get install chromium`).
Exits with 1 if a page is wider than the screen or its script failed, with 2 if there is no browser.
"""

import argparse
import html
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = {"phone": 390, "desktop": 1280}  # CSS pixels
SCHEMES = {"light": 1, "dark": 0}  # Blink's numbers
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
# The page stands in a frame of the wanted width, since a browser's window has a least width; the frame is as high as the page.
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<iframe src="{address}" width="{width}" height="{height}" onload="setTimeout(measure, 1500)"></iframe>
<script>
function measure() {{
  const inner = document.querySelector("iframe").contentDocument.documentElement;
  for (const hidden of inner.querySelectorAll("details")) hidden.open = true;
  const plots = [...inner.querySelectorAll(".plot")], drawn = plots.filter(plot => plot.querySelector(".main-svg"));
  document.title = [inner.scrollWidth, inner.scrollHeight, plots.length, drawn.length].join(" ");
}}
</script>"""


def browser() -> str:
    """The first browser that is there.

    Raises:
        SystemExit: none is.
    """
    for name in BROWSERS:
        if program := shutil.which(name):
            return program
    print(f"no browser: none of {', '.join(BROWSERS)} is on this machine; install Chromium to see the pages.", file=sys.stderr)
    raise SystemExit(2)


def call(program: str, page: Path, width: int, height: int, scheme: str, *action: str) -> str:
    """Open a page in a frame of `width` by `height` and return what the browser printed."""
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        frame.write_text(FRAME.format(address=page.resolve().as_uri(), width=width, height=height), encoding="utf-8")
        options = [f"--user-data-dir={folder}/profile", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", OFFLINE]
        options += [f"--window-size={max(width, 500)},{height}", "--virtual-time-budget=8000", "--allow-file-access-from-files"]
        done = subprocess.run(
            [program, *QUIET, *options, *action, frame.as_uri()], capture_output=True, text=True, check=False, timeout=300
        )
        return done.stdout


def measured(program: str, page: Path, width: int) -> tuple[int, int, int, int]:
    """Width and height of a page in CSS pixels on a screen of `width`, how many plots it has, and how many were drawn."""
    title = re.search(r"<title>([\d ]+)</title>", html.unescape(call(program, page, width, 1000, "light", "--dump-dom")))
    if title is None:
        raise SystemExit(f"{page}: the browser did not load it.")
    across, down, plots, drawn = map(int, title[1].split())
    return across, down, plots, drawn


def main() -> int:
    """The command line; returns what it ends with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("pages", nargs="+", type=Path, help="HTML files, or folders with such")
    options.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    arguments = options.parse_args()
    program, bad = browser(), 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    pages = [page for path in arguments.pages for page in (sorted(path.glob("*.html")) if path.is_dir() else [path])]
    for page in pages:
        for screen, width in WIDTHS.items():
            across, down, plots, drawn = measured(program, page, width)
            for scheme in SCHEMES:
                target = (arguments.out / f"{page.resolve().parent.name}-{page.stem}-{screen}-{scheme}.png").resolve()
                call(program, page, width, down, scheme, f"--screenshot={target}")
            wrong = [f"{across} px wide on a screen of {width}"] if across > width else []
            wrong += [f"{plots - drawn} of {plots} plots not drawn"] if drawn < plots else []
            bad += bool(wrong)
            print(f"{page}, {screen}: {down} px high, {plots} plots{''.join(f'; WRONG: {what}' for what in wrong)}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
