#!/bin/sh
# Print a file of this folder with your names in it: cluster/fill.sh cluster/kuberay/raycluster.yaml | kubectl apply -f -
# A name (step 1 of the READMEs) that the file has and your shell has not is an error.
set -eu
text=$(cat "$1")
for name in REGISTRY BUCKET REGION ACCOUNT SECURITY_GROUP SUBNET AMI; do
    # The whole word: AWS_REGION and $BUCKET are not names to fill in.
    word="(^|[^A-Za-z0-9_\$-])$name([^A-Za-z0-9_-]|\$)"
    if printf '%s\n' "$text" | grep -qE "$word"; then
        eval "value=\${$name:?is in $1}"
        text=$(printf '%s\n' "$text" | sed -E "s#$word#\\1$value\\2#g")
    fi
done
printf '%s\n' "$text"
