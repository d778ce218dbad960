# Sourced by scripts/demo, scripts/test and scripts/gpu_check.sh: makes a virtual environment once,
# and again when what it needs changes.
# usage: [VENV=.venv] venv_ready EXTRAS [PACKAGE_WITHOUT_DEPENDENCIES...]
venv_ready() {
    local extras=$1 venv=${VENV:-.venv}
    shift
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "error: $python is older than Python 3.10: set PYTHON to a newer one" >&2
        return 1
    }
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    local wanted stamp=$venv/installed-$extras
    wanted=$(cat pyproject.toml scripts/constraints.txt scripts/venv.sh | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing tgate-export[$extras] into $venv ..."
        local install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check
            -c scripts/constraints.txt)
        # torch first and alone: a range that its CPU build satisfies then installs nothing more.
        "${install[@]}" torch
        "${install[@]}" -e ".[$extras]"
        # Their own requirements pin old versions of what is there.
        [ $# -eq 0 ] || "${install[@]}" --no-deps "$@"
        echo "$wanted" >"$stamp"
    fi
    export PATH="$PWD/$venv/bin:$PATH"
}
