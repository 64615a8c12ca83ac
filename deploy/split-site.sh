#!/usr/bin/env bash
# Give the relay of a site that has joined a folder and a user of its own, so that it cannot read the images.
#
#     sudo deploy/split-site.sh NODE RELAY [OPTION VALUE]...
#
# NODE is the folder of `instahide node init` and `node join`; RELAY is made. Afterwards NODE belongs to the
# worker's user, RELAY to the relay's, and the two share NODE/state/relay, in which the socket is.
#
#     --worker-user, --relay-user, --socket-group   ids or names (10001, 10002, 10003: those of the containers)
#     --relay-home     what RELAY is called where the relay runs (/relay)
#     --socket-folder  what NODE/state/relay is called there (/run/instahide)
#
# Run it again after another `node join`. Exit codes: 0 done, 2 wrong input.
set -euo pipefail
umask 077

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 2
}

worker_user=10001 relay_user=10002 socket_group=10003 relay_home=/relay socket_folder=/run/instahide
[ $# -ge 2 ] || fail "two folders are needed" "split-site.sh NODE RELAY; the head of this file says more"
node=$1 relay=$2
shift 2
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || fail "$1 needs a value" "the head of this file lists the options"
    case $1 in
        --worker-user) worker_user=$2 ;;
        --relay-user) relay_user=$2 ;;
        --socket-group) socket_group=$2 ;;
        --relay-home) relay_home=$2 ;;
        --socket-folder) socket_folder=$2 ;;
        *) fail "there is no option $1" "the head of this file lists them" ;;
    esac
    shift 2
done

for file in node.key authority.crt node.toml worker.toml; do
    [ -f "$node/$file" ] || fail "$node has no $file" "it must be a node that has joined: instahide node join NODE NAME.join.json"
done
[ "$(id -u)" = 0 ] || fail "this changes the owners of files" "run it as root: sudo $0 $node $relay"

id_of() { # passwd|group NAME-OR-NUMBER
    case $2 in
        *[!0-9]*) getent "$1" "$2" | cut -d: -f3 ;;
        *) printf '%s' "$2" ;;
    esac
}
worker=$(id_of passwd "$worker_user") relay_id=$(id_of passwd "$relay_user") group=$(id_of group "$socket_group")
[ -n "$worker" ] && [ -n "$relay_id" ] && [ -n "$group" ] || fail "no such user or group" "make them first, or give numbers"
[ "$worker" != "$relay_id" ] || fail "worker and relay are one user" "give them two: that is what this is for"

setting() { # the TOML value of KEY in node.toml, as written there
    sed -n "s/^$1 = //p" "$node/node.toml"
}

# The relay's folder: its key, whom it trusts, and where everything is called what on its side.
install -d -m 0700 -o "$relay_id" "$relay"
install -m 0600 -o "$relay_id" "$node/node.key" "$relay/node.key"
install -m 0644 -o "$relay_id" "$node/authority.crt" "$relay/authority.crt"
install -m 0600 -o "$relay_id" /dev/null "$relay/node.toml.new"
cat > "$relay/node.toml.new" <<TOML
name = $(setting name)
coordinator = $(setting coordinator)
authority = "$relay_home/authority.crt"
private-key = "$relay_home/node.key"
state-folder = "$relay_home"
worker-socket = "$socket_folder/worker.sock"
TOML
mv "$relay/node.toml.new" "$relay/node.toml"

# The worker's: who may knock, and the one folder that both see.
install -d -m 0700 "$node/state"
sed -i '/^allowed-uids = /d; /^socket-group = /d' "$node/worker.toml"
printf 'allowed-uids = [%s, %s]\nsocket-group = %s\n' "$worker" "$relay_id" "$group" >> "$node/worker.toml"
chown -R "$worker" "$node"
install -d -m 0750 -o "$worker" -g "$group" "$node/state/relay"

echo "worker: $node, user $worker; relay: $relay, user $relay_id; both see $node/state/relay (group $group)"
