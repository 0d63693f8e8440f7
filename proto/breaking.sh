#!/usr/bin/env bash
# Refuses protos that break those before: where a branch left origin/main; on main itself, or without it, the commit before;
# while protos are changed and uncommitted, the last commit. `make breaking`.
set -euo pipefail
cd "$(dirname "$0")"

earlier_commit() {
    if [ -n "$(git status --porcelain -- .)" ]; then
        git rev-parse --verify --quiet 'HEAD^{commit}'
        return
    fi
    local fork
    fork=$(git merge-base HEAD origin/main 2>/dev/null) || fork=""
    if [ -n "$fork" ] && [ "$fork" != "$(git rev-parse HEAD)" ]; then
        echo "$fork"
    else
        git rev-parse --verify --quiet 'HEAD~1^{commit}'
    fi
}

if ! commit=$(earlier_commit) || ! git cat-file -e "$commit:./buf.yaml" 2>/dev/null; then
    echo "there are no earlier protos to compare with"
    exit 0
fi
earlier=$(mktemp -d)
trap 'rm -rf "$earlier"' EXIT
git archive "$commit" . | tar -x -C "$earlier"
buf breaking --against "$earlier"
echo "the protos break nothing of $(git rev-parse --short "$commit")"
