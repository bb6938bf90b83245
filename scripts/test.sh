#!/usr/bin/env bash
# Installs what is missing and runs the test suite; arguments go to pytest.
#
#   bash scripts/test.sh                 all tests but the slow ones, on two workers; each takes whole files (-n N: on N)
#   bash scripts/test.sh -m slow         the slow ones, and all examples of properties, of which the others draw a third
#   bash scripts/test.sh -m fast         quick ones that build no model
#   bash scripts/test.sh tests/x.py -k y some tests; without workers, whose start takes longer than a few tests
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
workers=(-n 2 --dist loadfile --no-loadscope-reorder)
for argument in "$@"; do
  if [ -e "${argument%%::*}" ]; then workers=(); fi
done
unset PYTHONDONTWRITEBYTECODE # some forty processes would each compile the package anew
exec scripts/python -m pytest ${workers[@]+"${workers[@]}"} "$@"
