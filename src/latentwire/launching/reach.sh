# Finds what a launch needs on a machine, and prints NAME=VALUE lines. $1: a Python to use, or empty. $2: where to look.
set -u
mkdir -p "$3" 2>/dev/null || { echo "problem=the folder $3 cannot be made"; exit 0; }
echo "folder=$(cd "$3" && pwd -P)"
usable='import sys, hashlib, fcntl, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
found=
try() {
    [ -z "$found" ] && [ -x "$1" ] && "$1" -I -c "$usable" >/dev/null 2>&1 && found=$1
}
uv=
for place in $2 "$HOME/.local/bin" "$HOME/.cargo/bin"; do
    [ -z "$uv" ] && [ -x "$place/uv" ] && uv=$place/uv
done
if [ -n "$1" ]; then
    case $1 in "~/"*) set -- "$HOME/${1#\~/}" "$2" "$3";; esac
    try "$1"
    [ -n "$found" ] || echo "problem=found no usable Python at $1: 3.11 or newer, with venv and ensurepip"
else
    for name in python3.12 python3.13 python3.11 python3.14 python3; do
        for place in $2 "$HOME"/miniconda3/bin "$HOME"/anaconda3/bin "$HOME"/miniforge3/bin "$HOME"/.local/bin \
            "$HOME"/.pyenv/versions/*/bin "$HOME"/.local/share/uv/python/*/bin; do
            try "$place/$name"
        done
    done
    if [ -z "$found" ] && [ -n "$uv" ]; then
        "$uv" python install --quiet 3.12 >/dev/null 2>&1 && try "$("$uv" python find 3.12)"
    fi
    [ -n "$found" ] || echo "problem=found no Python 3.11 or newer with venv and ensurepip, and no uv; install one (Debian: python3-venv) or name one with --python"
fi
echo "python=$found"
echo "uv=$uv"
