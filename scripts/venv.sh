# Sourced by scripts/demo, scripts/test and scripts/gpu_check.sh: makes a virtual environment once,
# and again when what it needs changes.
# usage: [VENV=.venv] venv_ready LOCK [EXTRAS...]
#   LOCK: a file of scripts/locks, which names every version and its hashes; see scripts/lock.
#   EXTRAS: more of this package's extras, whose versions are those of scripts/constraints.txt alone.
venv_ready() {
    local lock=scripts/locks/$1.txt extras=${2:-} venv=${VENV:-.venv}
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $python is older than Python 3.11: set PYTHON to a newer one" >&2
        return 1
    }
    # One of an older Python cannot be brought up to date.
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        "$python" -m venv --clear "$venv"
    local wanted stamp=$venv/installed-$1${extras:+-$extras}
    wanted=$(cat pyproject.toml scripts/constraints.txt "$lock" scripts/venv.sh | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing tgate-export ($1${extras:+, $extras}) into $venv ..."
        local install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile)
        # What builds this package, and those that are published as source, is in the lock as well.
        install+=(--no-build-isolation)
        "${install[@]}" --require-hashes --no-deps -r scripts/locks/build.txt
        "${install[@]}" --require-hashes --no-deps -r "$lock"
        # Its CPU build needs nothing more; the ordinary index's brings gigabytes of CUDA packages.
        "${install[@]}" -c scripts/constraints.txt torch
        if [ -n "$extras" ]; then
            "${install[@]}" -c scripts/constraints.txt -e ".[$extras]"
        else
            "${install[@]}" --no-deps -e .
        fi
        echo "$wanted" >"$stamp"
    fi
    export PATH="$PWD/$venv/bin:$PATH"
}
