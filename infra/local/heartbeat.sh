#!/usr/bin/env bash
# Run a command that may be silent for long: `heartbeat.sh WHAT COMMAND…` prints a plain line every ten seconds until it ends.
set -euo pipefail
what=$1
shift
"$@" &
command=$!
trap 'kill "$command" 2>/dev/null || true' INT TERM
(
    seconds=0
    exec 9<> <(:) # never readable: a wait of the shell's own, which leaves no process that holds the output open
    while ! read -rt 10 -u 9 && kill -0 "$command" 2>/dev/null; do
        seconds=$((seconds + 10))
        echo "  [$seconds s] $what"
    done
) &
lines=$!
status=0
wait "$command" || status=$?
kill "$lines" 2>/dev/null || true
exit "$status"
