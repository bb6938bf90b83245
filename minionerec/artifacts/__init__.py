"""Artefacts: what a stage leaves on disk, written whole or not at all, and checked before it is used.

`recipe` says what an artefact is made from and writes it, `manifest` is the record of a finished one, `lock` keeps two
processes apart, `shards` is the seam for long work, `ray_engine` an engine behind it, `files` hashes and writes single files.
"""

from minionerec.artifacts.files import (
    cache_folder,
    check_disk_space,
    content_hash,
    file_hash,
    folder_digest,
    read_json,
    replace_text,
    write_json,
)
from minionerec.artifacts.manifest import MANIFEST, MILLISECONDS, Manifest, changed_input, require, versions
from minionerec.artifacts.recipe import (
    CHECKPOINTS,
    ITEM_STAGES,
    REVISIONS,
    UNSEEDED,
    Draft,
    Recipe,
    foreign_content,
    of_another_revision,
)
from minionerec.artifacts.shards import over_shards, shards_of, sharing

__all__ = [
    "CHECKPOINTS",
    "ITEM_STAGES",
    "MANIFEST",
    "MILLISECONDS",
    "REVISIONS",
    "UNSEEDED",
    "Draft",
    "Manifest",
    "Recipe",
    "cache_folder",
    "changed_input",
    "check_disk_space",
    "content_hash",
    "file_hash",
    "folder_digest",
    "foreign_content",
    "of_another_revision",
    "over_shards",
    "read_json",
    "replace_text",
    "require",
    "shards_of",
    "sharing",
    "versions",
    "write_json",
]
