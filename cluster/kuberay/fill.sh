#!/bin/sh
# A manifest of this folder with the names of README.md, step 1, in it: cluster/kuberay/fill.sh raycluster | kubectl apply -f -
set -eu
: "${REGISTRY:?}" "${BUCKET:?}" "${REGION:?}" "${ACCOUNT:?}"
exec sed -e "s#REGISTRY#$REGISTRY#g; s#BUCKET#$BUCKET#g; s#REGION#$REGION#g; s#ACCOUNT#$ACCOUNT#g" "$(dirname "$0")/$1.yaml"
