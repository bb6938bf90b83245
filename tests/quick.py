"""What makes the processes of the tests quick; it changes no result."""

import functools
import os
import sys
import types


def settle() -> None:
    """Wait for no disk, and let two libraries look for a thing once; call it when they have been imported.

    Accelerate looks for a package in every step, which for a small model is a twentieth of the step, and collects all garbage
    before and after each training, which without a GPU frees nothing that would not be freed soon; jsonargparse goes through
    all options for each option, which is half of the time it takes to parse, and for each command's parser reads the source of
    all sections of the configuration, which is a third of the time it takes to make one.
    """
    os.fsync = lambda descriptor: None  # nothing here must survive a power cut, and each call waits for the disk
    if imports := sys.modules.get("accelerate.utils.imports"):
        imports._is_package_available = functools.cache(imports._is_package_available)
    if (memory := sys.modules.get("accelerate.utils.memory")) and not sys.modules["torch"].cuda.is_available():
        memory.gc = types.SimpleNamespace(collect=lambda: 0)
    if subcommands := sys.modules.get("jsonargparse._subcommands"):
        search = subcommands.find_action_and_subcommand

        @functools.cache
        def found(parser, dest, exclude, options):
            return search(parser, dest, exclude)

        def find(parser, dest, exclude=None):
            return found(parser, dest, exclude, len(parser._actions))  # one under construction gets more

        subcommands.find_action_and_subcommand = sys.modules["jsonargparse._core"].find_action_and_subcommand = find
    if resolvers := sys.modules.get("jsonargparse._parameter_resolvers"):
        parse_docs, texts = resolvers.parse_docs, {}

        def parse_docs_once(component, parent, logger):
            if (component, parent) not in texts:
                texts[component, parent] = parse_docs(component, parent, logger)
            return texts[component, parent]

        resolvers.parse_docs = parse_docs_once
