#!/usr/bin/env bash
# Installs what the tests can use of Debian, where it is missing, and axe-core of npm: for the tests on a cluster and
# of the report's page. Needs root and apt. No daemon is started: the tests start their own, in namespaces of their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# axe-core finds what keeps people from reading a page. It is another project's code, so that no copy is committed.
axe=report/axe-core
if [ ! -e "$axe/axe.min.js" ] && command -v npm >/dev/null; then
  unpacked=$(mktemp -d)
  if (cd "$unpacked" && npm pack --silent --fetch-timeout=20000 --fetch-retries=1 axe-core@4.14.1 && tar -xzf axe-core-*.tgz) >/dev/null; then
    mkdir -p "$axe"
    mv "$unpacked/package/axe.min.js" "$axe/axe.min.js"
  else
    echo "axe-core could not be fetched from npm" >&2
  fi
  rm -rf "$unpacked"
fi

packages=(slurm-wlm munge openssh-server pdsh iproute2 procps chromium fonts-dejavu-core)
missing=()
for package in "${packages[@]}"; do
  # shellcheck disable=SC2016  # dpkg's own variable
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit 0

# Debian's way to keep packages from starting their services; 101 means that it is forbidden.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# Another apt may be at work; a network that does not answer is given up soon.
options=(-o DPkg::Lock::Timeout=120 -o Acquire::http::Timeout=20 -o Acquire::Retries=1)
if ! {
  apt-get "${options[@]}" update &&
    apt-get "${options[@]}" install --yes --no-install-recommends "${missing[@]}"
} >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "the packages ${missing[*]} could not be installed; the whole output is in $log" >&2
  exit 1
fi
rm -f "$log"
