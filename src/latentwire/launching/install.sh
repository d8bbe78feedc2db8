#!/bin/sh
# Makes the environment of a launch: install.sh PYTHON ENVIRONMENT REQUIREMENTS UV
# PYTHON has an absolute path; UV is the path of uv, or empty. Nothing here depends on a login shell. A killed
# installation is begun anew, a complete one is not repeated: the marker is written last.
set -eu
python=$1 environment=$2 requirements=$3 uv=$4
if [ -e "$environment/.complete" ]; then
    echo "environment: $environment is complete"
    exit 0
fi
echo "environment: installing into $environment with $python"
rm -rf "$environment"
mkdir -p "$(dirname "$environment")"
"$python" -m venv "$environment"
fetch() {
    if [ -n "$uv" ] && "$uv" pip install --quiet --python "$environment/bin/python" "$@"; then return; fi
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
# torch comes alone and without hashes: one version has a build for each kind of machine, and only the machine knows.
if grep -q -- '--hash=' "$requirements/locked.txt"; then
    fetch --require-hashes --no-deps --requirement "$requirements/locked.txt"
else
    fetch --no-deps --requirement "$requirements/locked.txt"
fi
fetch --constraint "$requirements/constraints.txt" torch
touch "$environment/.complete"
echo "environment: complete"
