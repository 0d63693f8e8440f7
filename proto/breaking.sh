#!/usr/bin/env bash
# Refuses protos that break those of the commit before (of HEAD, while there are uncommitted changes). `make breaking`.
set -euo pipefail
cd "$(dirname "$0")"
base=HEAD~1
[ -z "$(git status --porcelain -- .)" ] || base=HEAD
if ! commit=$(git rev-parse --verify --quiet "$base^{commit}") || ! git cat-file -e "$commit:proto/buf.yaml" 2>/dev/null; then
    echo "there are no earlier protos to compare with"
    exit 0
fi
earlier=$(mktemp -d)
trap 'rm -rf "$earlier"' EXIT
git archive "$commit" . | tar -x -C "$earlier"
buf breaking --against "$earlier"
echo "the protos break nothing of $(git rev-parse --short "$commit")"
