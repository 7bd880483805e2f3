#!/usr/bin/env bash
# Run the tests that need a GPU.
#
#   WHEELS=wheels scripts/gpu/tests.sh [PYTEST OPTION]...
#
# xformers is compared where it is installed; its wheel may come by WHEELS.
source "$(dirname "$0")/setup.sh"

"$PYTHON" -m pytest -m gpu "$@"
