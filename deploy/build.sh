#!/bin/sh
# Compiles the bundle beside this script for the @device@, on the @device@. See README.md.
# Exit code 0: the engine is in the bundle; 1: TensorRT cannot compile the graph; 2: unsuitable package or machine.
set -eu

fail() {
    echo "build.sh: $1" >&2
    exit 2
}

[ $# -le 1 ] || fail "takes the public key that must have signed this package, or nothing; README.md says more"
key=${1-}
if [ -n "$key" ]; then
    [ -f "$key" ] || fail "$key: no such key"
    key=$(cd "$(dirname "$key")" && pwd -P)/$(basename "$key")
fi
cd "$(dirname "$0")"
if [ -n "$key" ]; then  # before any other file of the package is used; only the caller can check this script itself
    case "$key" in
        "$(pwd -P)"/*) fail "$key: the key lies in the package, whose maker could be anyone; take one from elsewhere" ;;
    esac
    [ -f SHA256SUMS.sig ] || fail "this package is not signed (SHA256SUMS.sig is missing); build it with --sign"
    command -v openssl >/dev/null || fail "no openssl to check the signature with"
    openssl pkeyutl -verify -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig -pubin -inkey "$key" >/dev/null 2>&1 ||
        fail "SHA256SUMS was not signed by $key, or was changed since"
fi
if ! checked=$(LC_ALL=C sha256sum -c SHA256SUMS 2>/dev/null); then
    changed=$(echo "$checked" | sed -n 's/: FAILED.*//p' | head -n 1)
    fail "${changed:-SHA256SUMS}: is missing or was changed; copy the package again"
fi

trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)  # where JetPack and DriveOS have it
[ -x "$trtexec" ] || fail "no trtexec on the PATH or in /usr/src/tensorrt/bin; @install@"
# Its first line says [TensorRT v100300] for 10.3.0.
version=$("$trtexec" --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9]*\)\].*/\1/p' | head -n 1)
[ -n "$version" ] || fail "$trtexec does not say which TensorRT it is of"
readable="$((version / 10000)).$((version / 100 % 100)).$((version % 100))"
if [ "$version" -lt @first@ ] || [ "$version" -ge @end@ ]; then
    fail "@target@ needs TensorRT @versions@, but $trtexec is of $readable"
fi

# The record in the format of deploy/bundle.py. It is written last, since the runtime refuses a plan without it. trtexec
# does not report the number of layers.
digest() { sha256sum "$@" | cut -d ' ' -f 1; }
record() {
    printf '{\n  "target": "@target@",\n  "compiler": "tensorrt %s",\n' "$readable@with_dla@"
    printf '  "layers": 0,\n  "seconds": %s.0,\n  "plan_bytes": %s,\n' "$seconds" "$bytes"
    printf '  "plan_sha256": "%s",\n  "refittable": @refittable@,\n' "$compiled"
    printf '  "onnx_sha256": "%s",\n  "weights_sha256": "%s"\n}' "$network" "$network"
}

compile() { # the network of the bundle in folder $1
    folder=$1
    mkdir -p "$folder/engines"
    plan=$folder/engines/@target@.plan
    trap 'rm -f "$plan.new"' EXIT
    set -- "--onnx=$folder/@graph@" "--saveEngine=$plan.new" @flags@
    if [ "$version" -lt 110000 ]; then
        set -- "$@" --stronglyTyped  # always on in TensorRT 11
    fi
    start=$(date +%s)
    if ! "$trtexec" "$@" >>build.log 2>&1; then
        echo "build.sh: TensorRT $readable cannot compile $folder/@graph@; build.log says why:" >&2
        grep -F '[E]' build.log | tail -n 5 >&2
        exit 1
    fi
    seconds=$(($(date +%s) - start))
    if [ ! -s "$plan.new" ]; then
        echo "build.sh: trtexec reports success but wrote no engine; build.log has its output" >&2
        exit 1
    fi
    capability=$(sed -n 's/.*Compute Capability: \([0-9.]*\).*/\1/p' build.log | head -n 1)
    case "$capability" in
        @capabilities@ | "") ;;
        *) fail "this GPU has compute capability $capability, a @device@ has @capabilities@; run the script there" ;;
    esac
    bytes=$(($(wc -c <"$plan.new")))
    compiled=$(digest "$plan.new")
    network=$(digest "$folder/@graph@")
    record >"$folder/engines/@target@.json.new"
    rm -f "$folder/engines/@target@.sig"  # signs the record of the plan before
    mv "$plan.new" "$plan"
    mv "$folder/engines/@target@.json.new" "$folder/engines/@target@.json"
    echo "$plan: compiled by TensorRT $readable in $seconds s"
}

: >build.log
@compile@
