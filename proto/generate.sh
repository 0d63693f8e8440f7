#!/usr/bin/env bash
# Checks the protos and generates the stubs of libs/gyre-proto. Run it through `make proto`.
set -euo pipefail
cd "$(dirname "$0")"
buf lint
out=../libs/gyre-proto/src
find "$out" -name '*_pb2*' -delete
mapfile -t files < <(find gyre externalscaler -name '*.proto' | sort)
python -m grpc_tools.protoc -I . --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" "${files[@]}"
# Only files that declare a service need gRPC stubs.
find "$out" -name '*_pb2_grpc.py*' | while read -r stub; do
    proto=${stub#"$out"/}; proto=${proto%_pb2_grpc.py*}.proto
    grep -q '^service ' "$proto" || rm -f "$stub"
done
