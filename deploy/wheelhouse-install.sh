#!/usr/bin/env bash
# Install from this folder into a new environment, on a machine without network, and prove that there was none.
#
#     ./install.sh TARGET [SHA256]        TARGET is made, /opt/instahide say; SHA256 is what who built this read out
#
# PYTHON names the Python to use (python3). Everything runs in a network namespace of its own, without an interface
# but a loopback that is down: what would need the network fails. Where this system permits no such namespace,
# INSTAHIDE_UNPROVEN=1 goes on without one; pip is told to use this folder only in either case.
#
# Exit codes: 0 done, 1 the installation failed, 2 wrong input, 3 no proof to be had, 4 a file is not what it was.
set -euo pipefail

fail() { # ERROR HINT [EXIT-CODE]
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit "${3:-2}"
}

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

is_without_network() { # the namespace this runs in has no interface but loopback
    [ "$(sed '1,2d; s/^ *//; s/:.*//' /proc/net/dev)" = lo ]
}

install_here() { # TARGET, in whatever namespace this is
    local target=$1 pip
    if [ "${INSTAHIDE_UNPROVEN:-}" != 1 ]; then
        is_without_network || fail "this runs with a network, so nothing would be proven" "see the head of $0" 3
    fi
    pip=$(echo "$here"/pip-*.whl)/pip
    "$python" -m venv --without-pip "$target"
    # No variable and no settings file of this machine can name another place. pip runs from its wheel; the new
    # environment has none, as nothing is to be added to it.
    export PIP_CONFIG_FILE=/dev/null
    "$target/bin/python" -I "$pip" --isolated install --quiet --disable-pip-version-check --no-cache-dir --no-index \
        --find-links "$here/wheels" --only-binary :all: --no-deps --require-hashes -r "$here/requirements.txt"
    "$target/bin/python" -I "$pip" --isolated check
    if [ -x "$target/bin/instahide" ]; then
        "$target/bin/instahide" --help > /dev/null
    fi
}

if [ "${1:-}" = --inside ]; then
    install_here "$2"
    exit 0
fi

[ $# -ge 1 ] && [ $# -le 2 ] || fail "a folder to install into is needed" "$0 TARGET [SHA256]"
target=$1
[ ! -e "$target" ] || fail "$target exists already" "give a folder that does not, or move that one away"
command -v "$python" > /dev/null || fail "there is no $python here" "install Python, or name one: PYTHON=/usr/bin/python3.11 $0 $target"
wanted=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["python"])' "$here/wheelhouse.json")
found=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
[ "$wanted" = "$found" ] || fail "these wheels are for Python $wanted, and $python is $found" "PYTHON=/usr/bin/python$wanted $0 $target"

sum=$(sha256sum "$here/SHA256SUMS" | cut -d ' ' -f 1)
if [ $# = 2 ] && [ "$2" != "$sum" ]; then
    fail "this wheelhouse has the SHA-256 $sum, not $2" "a file was changed or lost on its way: fetch it again" 4
fi
(cd "$here" && sha256sum --check --quiet --strict SHA256SUMS) || fail "a file is not what it was" "fetch the wheelhouse again" 4

finished=
trap '[ -n "$finished" ] || rm -rf "$target"' EXIT
if [ "${INSTAHIDE_UNPROVEN:-}" = 1 ]; then
    install_here "$target" || fail "the installation failed" "pip's own words are above" 1
    proof="NOT proven to be without network"
else
    if unshare --net true 2> /dev/null; then
        alone=(unshare --net)
    elif unshare --user --map-root-user --net true 2> /dev/null; then
        alone=(unshare --user --map-root-user --net)
    else
        fail "this system permits no network namespace, so nothing can be proven" \
            "run it as root, or accept that: INSTAHIDE_UNPROVEN=1 $0 $target" 3
    fi
    status=0
    "${alone[@]}" "$here/install.sh" --inside "$target" || status=$?
    [ "$status" != 3 ] || exit 3
    [ "$status" = 0 ] || fail "the installation failed" "pip's own words are above" 1
    proof="without network"
fi
finished=yes
[ $# = 2 ] || echo "not compared with what its maker read out; its SHA-256 is $sum"
echo "installed in $target, $proof; next: $target/bin/instahide --help"
