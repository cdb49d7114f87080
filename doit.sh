#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes the environment once (system packages, Python packages), then passes its arguments to doit:
#   ./doit.sh build boot-test
set -eu
cd "$(dirname "$0")"
ready=.venv/ready

# Everything below is done when `ready` has the sums of what it was made from: a clock may be set back.
if [ -s "$ready" ] && sha256sum --status -c "$ready"; then
    PATH="$PWD/.venv/bin:$PATH"; export PATH
    exec doit "$@"
fi

say() { echo "doit.sh: $*" >&2; }

packages=$(sed -e 's/#.*//' -e 's/[[:space:]].*//' -e '/^$/d' configs/packages.txt)
if command -v dpkg-query >/dev/null; then
    missing=
    for package in $packages; do
        case $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true) in
        installed) ;;
        *) missing="$missing $package" ;;
        esac
    done
    if [ -n "$missing" ]; then
        install="apt-get install -y --no-install-recommends$missing"
        if [ "$(id -u)" -eq 0 ]; then
            sudo=
        elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
            sudo=sudo
        else
            say "missing system packages; this line installs them:"
            say "  sudo apt-get update && sudo $install"
            exit 3
        fi
        say "installing$missing"
        log=$(mktemp)
        # shellcheck disable=SC2086  # the list is meant to be words
        if ! { $sudo apt-get update -q && $sudo env DEBIAN_FRONTEND=noninteractive $install; } >"$log" 2>&1; then
            tail -n 20 "$log" >&2
            say "apt could not install them; its whole output is in $log"
            exit 3
        fi
        rm -f "$log"
    fi
else
    say "not a Debian-like system: please see to these packages yourself: $(echo $packages)"
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "needs Python 3.11 or newer"; exit 3; }
say "making .venv from requirements.txt"
rm -rf .venv
python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
# The command `minguest`, from this folder as it is.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
sha256sum configs/packages.txt requirements.txt pyproject.toml doit.sh >"$ready"
exec "$0" "$@"
