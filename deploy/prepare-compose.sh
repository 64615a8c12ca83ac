#!/usr/bin/env bash
# Folders, keys and admission for compose.yaml: a coordinator and three sites on this machine.
#
#     deploy/prepare-compose.sh FOLDER        (federation-data, say; compose.yaml looks there, or in INSTAHIDE_DATA)
#
# Run once, it makes FOLDER and says where the images go. Run again, it makes the study, starts the coordinator,
# and takes every site with images through init, admit and join. What is there already is left as it is, so it may
# be run as often as you like. For site N, in FOLDER/site-N/data:
#
#     training or training.npz   images of the hospital (a folder of label/*.png, or what `instahide dataset inspect` reads)
#     test     or test.npz       if there are test images
#     public   or public.npz     public images to mix with, if any
#
# Everything that makes a key runs inside the container of the one who keeps it. Exit codes: 0 done, 2 wrong input,
# else that of the step that failed.
set -euo pipefail
umask 077

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 2
}

[ $# = 1 ] || fail "one folder is needed" "deploy/prepare-compose.sh federation-data"
here=$(cd "$(dirname "$0")" && pwd)
sites="site-1 site-2 site-3"
mkdir -p "$1/coordinator"
for site in $sites; do
    mkdir -p "$1/$site/node" "$1/$site/data"
done
INSTAHIDE_DATA=$(cd "$1" && pwd) INSTAHIDE_UID=${INSTAHIDE_UID:-$(id -u)} INSTAHIDE_GID=${INSTAHIDE_GID:-$(id -g)}
export INSTAHIDE_DATA INSTAHIDE_UID INSTAHIDE_GID
[ "$INSTAHIDE_UID" != 0 ] || fail "the containers would run as root" "run this as another user, or set INSTAHIDE_UID and INSTAHIDE_GID"
if [ "$(id -u)" = 0 ]; then
    chown -R "$INSTAHIDE_UID:$INSTAHIDE_GID" "$INSTAHIDE_DATA"
fi

compose() {
    ${DOCKER:-docker} compose -f "$here/compose.yaml" "$@"
}

in_container() { # SERVICE, then the words of an instahide command
    compose run --rm --no-deps -T "$@"
}

found() { # FOLDER NAME: NAME or NAME.npz, whichever is there
    for name in "$2" "$2.npz"; do
        if [ -e "$1/$name" ]; then
            printf '%s' "$name"
            return
        fi
    done
}

ready=
for site in $sites; do
    if [ -n "$(found "$INSTAHIDE_DATA/$site/data" training)" ]; then
        ready="$ready $site"
    fi
done
if [ -z "$ready" ]; then
    echo "folders made in $INSTAHIDE_DATA; put the sites' images into them:"
    for site in $sites; do
        echo "  $INSTAHIDE_DATA/$site/data/training (or training.npz), and test and public if there are any"
    done
    echo "then run this again: $0 $1"
    exit 0
fi

if [ ! -e "$INSTAHIDE_DATA/coordinator/study.toml" ]; then
    in_container coordinator coordinator init /study --host coordinator
fi
compose up --detach --wait coordinator

for site in $ready; do
    node=$INSTAHIDE_DATA/$site/node data=$INSTAHIDE_DATA/$site/data
    if [ ! -e "$node/node.key" ]; then
        words="--data /data/$(found "$data" training)"
        for kind in test public; do
            name=$(found "$data" "$kind")
            words="$words${name:+ --$kind /data/$name}"
        done
        # shellcheck disable=SC2086 # words of ours, without spaces in them
        in_container "$site" node init /node --name "$site" $words
    fi
    if [ ! -e "$node/node.toml" ]; then
        # Between two hospitals this is an e-mail and a telephone call: compare the fingerprints shown.
        cp "$node/$site.request.json" "$INSTAHIDE_DATA/coordinator/$site.request.json"
        if [ "$(id -u)" = 0 ]; then
            chown "$INSTAHIDE_UID:$INSTAHIDE_GID" "$INSTAHIDE_DATA/coordinator/$site.request.json"
        fi
        compose exec -T coordinator instahide coordinator admit /study "/study/$site.request.json"
        mv "$INSTAHIDE_DATA/coordinator/$site.join.json" "$node/$site.join.json"
        in_container "$site" node join /node "/node/$site.join.json"
    fi
done

echo "prepared:$ready. Start everything with"
echo "  export INSTAHIDE_DATA=$INSTAHIDE_DATA INSTAHIDE_UID=$INSTAHIDE_UID INSTAHIDE_GID=$INSTAHIDE_GID"
echo "  docker compose -f $here/compose.yaml up --detach coordinator$ready"
