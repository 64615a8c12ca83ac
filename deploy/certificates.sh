#!/usr/bin/env bash
# A gateway certificate from an authority of your own: ask for it, look at it, hand it over.
#
#     deploy/certificates.sh request FOLDER NAME...      gateway.key and gateway.csr, for names or addresses
#     (send gateway.csr to whoever runs the authority; receive a certificate, its chain, the authority's certificate)
#     deploy/certificates.sh chain OUT CERTIFICATE [INTERMEDIATE]...    all of it, the server's first, in one PEM file
#     deploy/certificates.sh check CERTIFICATE KEY CA NAME...           what a hospital's node would say to it
#
# Then, for a new study or one that exists:
#
#     instahide coordinator init  STUDY --host NAME --certificate-file CERTIFICATE --key-file KEY --ca-file CA
#     instahide coordinator renew STUDY --certificate-file CERTIFICATE --key-file KEY --ca-file CA
#
# Needs openssl 3. Exit codes: 0 done, 2 wrong input, 4 a certificate that would not do.
set -euo pipefail
umask 077

fail() { # EXIT-CODE ERROR HINT
    printf 'error: %s\nhint: %s\n' "$2" "$3" >&2
    exit "$1"
}

usage() {
    fail 2 "$1" "request FOLDER NAME... | chain OUT CERTIFICATE... | check CERTIFICATE KEY CA NAME...; the head of this file says more"
}

is_address() {
    case $1 in
        *:*) return 0 ;;
        *[!0-9.]*) return 1 ;;
        *.*.*.*) return 0 ;;
        *) return 1 ;;
    esac
}

request() {
    [ $# -ge 2 ] || usage "request takes a folder and at least one name"
    local folder=$1 names=() name
    shift
    for name in "$@"; do
        case $name in
            '' | *[!A-Za-z0-9.:-]*) fail 2 "'$name' is no host name or address" "leave out scheme, port and wildcards" ;;
        esac
        if is_address "$name"; then names+=("IP:$name"); else names+=("DNS:$name"); fi
    done
    mkdir -p "$folder"
    [ ! -e "$folder/gateway.key" ] || fail 2 "$folder/gateway.key exists already" "use another folder: a key is not overwritten"
    local joined
    joined=$(IFS=,; printf '%s' "${names[*]}")
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \
        -keyout "$folder/gateway.key" -out "$folder/gateway.csr" -subj "/CN=$1" \
        -addext "subjectAltName=$joined" -addext "extendedKeyUsage=serverAuth" \
        -addext "keyUsage=critical,digitalSignature" 2> /dev/null
    echo "made $folder/gateway.key (stays here) and $folder/gateway.csr (to be signed), for $joined"
}

chain() {
    [ $# -ge 2 ] || usage "chain takes the file to write and at least one certificate"
    local out=$1 file
    shift
    [ ! -e "$out" ] || fail 2 "$out exists already" "write to another file"
    for file in "$@"; do
        openssl x509 -in "$file" -noout 2> /dev/null ||
            fail 4 "$file holds no PEM certificate" "from DER: openssl x509 -inform der -in FILE -out FILE.pem"
    done
    for file in "$@"; do
        openssl x509 -in "$file"
    done > "$out"
    echo "wrote $out: $# certificates, the first one is the server's"
}

check() {
    [ $# -ge 4 ] || usage "check takes a certificate, its key, the authority's certificate and the names"
    local certificate=$1 key=$2 authority=$3 name kind
    shift 3
    [ "$(openssl x509 -in "$certificate" -noout -pubkey 2> /dev/null)" = "$(openssl pkey -in "$key" -passin pass: -pubout 2> /dev/null)" ] ||
        fail 4 "$key is not the key of $certificate, or has a passphrase" "the server's own certificate comes first in its file"
    for name in "$@"; do
        if is_address "$name"; then kind=-verify_ip; else kind=-verify_hostname; fi
        openssl verify -x509_strict -purpose sslserver -no-CApath -no-CAstore -CAfile "$authority" \
            -untrusted "$certificate" "$kind" "$name" "$certificate" > /dev/null 2>&1 ||
            fail 4 "$certificate does not serve $name for who trusts $authority" \
                "see: openssl verify -x509_strict -CAfile $authority -untrusted $certificate $kind $name $certificate"
    done
    openssl x509 -in "$certificate" -noout -enddate
    echo "good for $*"
}

[ $# -ge 1 ] || usage "a verb is needed"
verb=$1
shift
case $verb in
    request | chain | check) "$verb" "$@" ;;
    *) usage "there is no verb $verb" ;;
esac
