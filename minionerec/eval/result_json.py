"""Result files of the released MiniOneRec: a JSON list of objects `input`, `output`, `predict`."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from minionerec.config.documents import DocumentError, parse_json
from minionerec.errors import CatalogError, ConfigError, DataError
from minionerec.eval.lists import EMPTY, NO_TIE, RankedLists
from minionerec.sid.index import parse_token

_IN_PROMPT = re.compile(r"<a_\d+>(?:<[b-z]_\d+>)*")


def codes_of(text: str) -> tuple[int, ...] | None:
    """The codes of a SID as text, e.g. `<a_17><b_203><c_8>`; None if the text is no SID with its levels in order."""
    *tokens, rest = text.strip().strip('"').strip().split(">")
    parsed = [parse_token(f"{token}>") for token in tokens]
    codes = tuple(pair[1] for level, pair in enumerate(parsed) if pair is not None and pair[0] == level)
    return codes if codes and len(codes) == len(tokens) and not rest else None


def read_catalog(path: Path) -> dict[tuple[int, ...], int]:
    """How many items each SID has, from an `index.json` (item to token strings) or the released code's info text.

    Raises:
        CatalogError: the file is neither, or an item's SID is malformed (the message names it).
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: cannot be read ({error}); expected an index.json or an info text file.") from None
    if text.lstrip().startswith("{"):
        try:
            rows = parse_json(text, distinct=True)
        except json.JSONDecodeError as error:
            raise CatalogError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).") from None
        except DocumentError as error:
            raise CatalogError(f"{path}: not readable as JSON ({error}).") from None
        entries = [(f"item {item}", "".join(sid) if isinstance(sid, list) else str(sid)) for item, sid in rows.items()]
    else:
        lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")  # titles may hold other breaks
        entries = [(f"line {number}", line.split("\t")[0]) for number, line in enumerate(lines, 1)]
    sizes: dict[tuple[int, ...], int] = {}
    for position, sid in entries:
        codes = codes_of(sid)
        if codes is None:
            raise CatalogError(f"{path}, {position}: {sid[:60]!r} is no SID; expected text such as <a_17><b_203><c_8>.")
        sizes[codes] = sizes.get(codes, 0) + 1
    if not sizes:
        raise CatalogError(f"{path}: no items; expected an index.json or an info text file.")
    return sizes


def _records(path: Path) -> list[Any]:
    """The objects of a result file.

    Raises:
        DataError: the file is missing, is not JSON, or is no list of objects.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = parse_json(text)
    except FileNotFoundError:
        raise DataError(f"{path}: not found.") from None
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        cut_off = "" if text.rstrip().endswith("]") else "; the file is cut off"
        raise DataError(f"{where}: not valid JSON ({error.msg}){cut_off}. Run the evaluation again.") from None
    except (OSError, UnicodeDecodeError, DocumentError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(values, list) or not values:
        found = "an empty list" if values == [] else f"a {type(values).__name__}"
        raise DataError(f"{path}: found {found}; expected a list of objects with input, output and predict, at least one.")
    return values


def _target(output: Any) -> tuple[int, ...] | None:
    """The SID of a field `output`, read as the released code's `calc.py` reads it; None if it is none."""
    if isinstance(output, list) and output and isinstance(output[0], str):
        return _exact_codes(output[0].strip('"').strip(" "))
    return _exact_codes(output.strip(' \n"')) if isinstance(output, str) else None


def _recommended(text: str) -> tuple[int, ...] | None:
    """The SID of a recommended text, read as `calc.py` reads it: quotes go before blanks do, so ` "<a_1>"` is no SID."""
    return _exact_codes(text.strip('"\n').strip())


def _exact_codes(text: str) -> tuple[int, ...] | None:
    return codes_of(text) if text.startswith("<") and text.endswith(">") else None


def read_released(path: Path, catalog: dict[tuple[int, ...], int] | None = None) -> RankedLists:
    """Read the released code's result file.

    Its lists may hold a SID twice, and text that is no SID. Such a position counts as a rank and matches nothing, as in the
    released code's own `calc.py`. With a catalog, a SID outside it matches nothing either, at no level. The file names no
    users, so each record is its own unit of resampling. The history is read from the SIDs of the prompt.

    SIDs may differ in length, for example if only colliding items have a suffix. The longest target (with a catalog, its
    longest SID) decides the number of levels, and shorter SIDs end in -1. Without a catalog, a recommendation is a SID only if
    some target has its length.

    Args:
        catalog: items per SID, see `read_catalog`; gives item-level ranks, and makes SIDs outside the catalog invalid.

    Raises:
        DataError: malformed JSON (line), a malformed record (its number and field), lists of unequal length, or targets
            outside the catalog.
    """
    path = Path(path)
    targets: list[tuple[int, ...]] = []
    ranked: list[list[tuple[int, ...] | None]] = []
    histories: list[list[tuple[int, ...]]] = []
    codes_by_text: dict[str, tuple[int, ...] | None] = {}  # a text is recommended many times, and parsed once
    for number, record in enumerate(_records(path), 1):
        where = f"{path}, record {number}"
        if not isinstance(record, dict):
            raise DataError(f"{where}: found {type(record).__name__}, expected an object with output and predict.")
        predict, output = record.get("predict"), record.get("output")
        if (target := _target(output)) is None:
            raise DataError(f"{where}: field output is {json.dumps(output)[:60]}, expected a SID such as <a_17><b_203><c_8>.")
        if not isinstance(predict, list) or not predict or not all(isinstance(text, str) for text in predict):
            raise DataError(f"{where}: field predict is {json.dumps(predict)[:60]}, expected a list of SIDs as text.")
        if ranked and len(predict) != len(ranked[0]):
            raise DataError(
                f"{where}: {len(predict)} predictions, record 1 has {len(ranked[0])}; lists of unequal length are cut off or "
                "merged from different runs. Run the evaluation again."
            )
        if catalog is not None and target not in catalog:
            raise DataError(f"{where}: the target {str(output).strip()} is not in the catalog: predictions of another catalog.")
        for text in predict:
            if text not in codes_by_text:
                codes = _recommended(text)
                codes_by_text[text] = codes if catalog is None or codes in catalog else None
        targets.append(target)
        ranked.append([codes_by_text[text] for text in predict])
        histories.append(_history(str(record.get("input", ""))))
    width = len(ranked[0])
    depths = {len(sid) for sid in catalog or targets}
    levels = max(depths)
    padded = {sid: sid + (EMPTY,) * (levels - len(sid)) for sid in {(), *targets, *filter(None, codes_by_text.values())}}
    no_sid = padded[()]
    sids = np.array(
        [[padded[sid] if sid and len(sid) in depths else no_sid for sid in row] for row in ranked], dtype=np.int32
    ).reshape(-1, width, levels)
    sizes = None
    if catalog is not None:
        sizes = np.array([[catalog[sid] if sid else 1 for sid in row] for row in ranked], dtype=np.int32)
    return RankedLists(
        users=np.arange(1, len(targets) + 1).astype(np.str_),
        positions=np.full(len(targets), -1),
        targets=np.full(len(targets), -1),
        target_sids=np.array([padded[target] for target in targets], dtype=np.int32),
        sids=sids,
        lengths=np.full(len(targets), width),
        scores=None,
        score_kind=None,
        sizes=sizes,
        items=None,
        history=None,
        history_lengths=np.array([len(history) for history in histories]),
        repeats=np.array([target in history for target, history in zip(targets, histories, strict=True)]),
        exact=None,
        item_ties=np.tile(NO_TIE, (len(targets), 1)),
        sid_ties=np.tile(NO_TIE, (len(targets), 1)),
    )


def _history(prompt: str) -> list[tuple[int, ...]]:
    """The SIDs of a prompt in order, before its answer section."""
    prompt = prompt.split("### Response:")[0]
    sids = (codes_of(text) for text in _IN_PROMPT.findall(prompt))
    return [codes for codes in sids if codes]


def read_lists(path: Path, catalog: dict[tuple[int, ...], int] | None = None) -> RankedLists:
    """Read a predictions file: our `predictions.jsonl`, or the released code's JSON list.

    Args:
        catalog: items per SID, see `read_catalog`; for the released code's file only.

    Raises:
        DataError: the file is missing or malformed; the message names the line or record.
        ConfigError: a catalog was given for our own file, which names its items.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Make it with the eval stage.") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read as text ({error}); expected predictions.jsonl or the released code's JSON."
        ) from None
    if start.startswith(b"["):  # the released code's list; a line of ours opens with "{"
        return read_released(path, catalog)
    if catalog is not None:
        raise ConfigError(f"{path}: holds items of its own, so it needs no index of the catalog. Leave the index out.")
    return RankedLists.read(path)
