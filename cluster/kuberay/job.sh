#!/bin/sh
# Run one RayJob to its end, with the names of README.md, step 1: cluster/kuberay/job.sh prepare | train | reference | evaluate | sweep
# Exit code 0 when it has succeeded. Run again it is submitted again, and resumes: a RayJob that is only
# applied again stays what it was, so it is deleted first (which also ends it, when it runs).
set -eu
here=$(dirname "$0")
name=edm-$1
manifest=$("$here/../fill.sh" "$here/rayjob-$1.yaml")
kubectl --namespace edm delete rayjob "$name" --ignore-not-found
echo "$manifest" | kubectl apply -f -
while true; do
    state=$(kubectl --namespace edm get rayjob "$name" -o jsonpath='{.status.jobDeploymentStatus}/{.status.jobStatus}')
    case $state in
        Complete/* | Failed/* | ValidationFailed/*) break ;;
    esac
    sleep "${POLL_SECONDS:-10}"
done
kubectl --namespace edm logs "job/$name" --tail=20 || true
echo "$name: $state"
[ "$state" = Complete/SUCCEEDED ]
