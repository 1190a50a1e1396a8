#!/bin/sh
# `make test`: everything. Debian packages are installed where they may be; what has to be skipped is named.
# In CI (CI=true) nothing may be skipped.
set -eu
UV=${UV:-uv}
RUN="$UV run --frozen --extra dev"

packages="openssh-server postgresql munge slurmctld slurmd slurm-client chromium fonts-dejavu-core"
missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        # Services of these packages are not started: the tests start their own, on loopback.
        [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; }
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    elif [ "${CI:-}" = true ]; then
        echo "make test: these Debian packages are missing and may not be installed:$missing" >&2
        exit 1
    else
        echo "make test: skipped is what needs these Debian packages:$missing"
    fi
fi

$RUN ruff check .
$RUN ruff format --check .
$RUN mypy
$RUN lint-imports >/dev/null || $RUN lint-imports

# The core's own examples take every branch of it.
COVERAGE_FILE=$(mktemp) && export COVERAGE_FILE
trap 'rm -f "$COVERAGE_FILE"' EXIT
$RUN coverage run --branch --source src/moorage/core -m pytest -q tests/unit/core
$RUN coverage report --skip-covered --fail-under=100

if [ "${CI:-}" = true ]; then profile=ci; else profile=${HYPOTHESIS_PROFILE:-ci}; fi
$RUN pytest -q -n 2 --dist loadgroup --hypothesis-profile "$profile" "$@"
[ $# = 0 ] || exit 0

# The other JupyterHub. Its own schemas of events have numbers for versions, which a library of its warns of.
timeout 900 $RUN --with jupyterhub==5.5.4 pytest -q -n 2 -W 'ignore:The `version` property of an event schema' \
    tests/unit/adapters/hub tests/e2e/test_browser.py::test_form_start_progress_lab_and_a_cell
