# The two environments ("lanes") of this project; sourced by the scripts that need them.
#
#   modern  Python 3.11, torch 2.13.0, no k2
#   k2      Python 3.10, real k2 1.23.4 (torch 1.13.1)
#
# Each is a venv under .venvs/, made on first use from its pins and reused while they do not change.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venvs="$repo/.venvs"

# Prints the path of a Python of the given version (3.10), from PATH or pyenv; fails if there is none.
find_python() {
    local version=$1 candidate
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python \
        python3 python; do
        candidate=$(command -v "$candidate" 2>/dev/null) || continue
        if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ]; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# make_lane LANE PYTHON: builds or reuses .venvs/LANE; afterwards `lane_python LANE` runs in it. Of two
# that want one lane at once the second waits, and finds it made.
make_lane() {
    mkdir -p "$venvs"
    (
        if command -v flock >/dev/null; then
            flock -n 9 || { echo "[$1 lane] waiting for another process that makes it" && flock 9; }
        fi
        build_lane "$@" 9>&-
    ) 9>"$venvs/$1.lock"
}

# build_lane LANE PYTHON: as make_lane, alone. The lane is stamped as made only once what it is for can
# be imported.
build_lane() {
    local lane=$1 python=$2 pins=("$repo/scripts/requirements-$1"*.txt) imports stamp
    case $lane in
    k2) imports="torch, lhotse, k2" ;;
    *) imports="torch, lhotse" ;;
    esac
    stamp="$("$python" --version) $(cat "${pins[@]}" "$repo/pyproject.toml" | cksum) $repo imports $imports"
    if [ "$(cat "$venvs/$lane/.made" 2>/dev/null)" = "$stamp" ]; then
        return 0
    fi
    echo "[$lane lane] making $venvs/$lane with $("$python" --version); the first time takes minutes"
    rm -rf "${venvs:?}/$lane"
    "$python" -m venv "$venvs/$lane" || return 1
    local pip=("$venvs/$lane/bin/python" -m pip --disable-pip-version-check)
    # pip 26.3 and later refuse the file name of the k2 wheel.
    "${pip[@]}" install -q pip==26.2.1 || return 1
    "${pip[@]}" install -q -r "$repo/scripts/requirements-$lane.txt" || return 1
    if [ "$lane" = k2 ]; then
        # A file with a hash demands one of everything that it installs.
        "${pip[@]}" install -q --no-deps -r "$repo/scripts/requirements-k2-wheel.txt" || return 1
    fi
    "${pip[@]}" install -q --no-deps --no-build-isolation -e "$repo" || return 1
    if ! (cd "$venvs" && "$venvs/$lane/bin/python" -c "import $imports, panda_icefall"); then
        echo "[$lane lane] the packages are installed, but 'import $imports' fails (see above)" >&2
        return 1
    fi
    printf '%s\n' "$stamp" >"$venvs/$lane/.made"
}

lane_python() {
    printf '%s\n' "$venvs/$1/bin/python"
}

# The modern lane's Python: the pinned torch has CPU wheels for several, 3.11 is the one tested.
modern_python() {
    local version
    for version in 3.11 3.12; do
        find_python "$version" && return 0
    done
    echo "no Python 3.11 (or 3.12) found on PATH or in pyenv; install one" >&2
    return 1
}
