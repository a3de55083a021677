#!/usr/bin/env bash
# Fetches the Italian manuals that configs/smollm2-135m-italian.toml trains and measures on, out of Debian packages.
#
#   scripts/italian-manuals.sh FOLDER [--any-version]
#
# writes FOLDER/train.jsonl, held-out.jsonl, out-of-domain.jsonl and english.jsonl (scripts/italian_manuals.py says what
# is in each). Needs Debian 12's package lists (apt-get update), dpkg-deb and python3. Nothing is installed; the packages
# stay in FOLDER/packages and are not fetched twice. Every package is checked by its SHA-256: Debian replaces packages by
# newer ones and drops the old, so one day the check fails. `--any-version` then goes on with the newer texts, and the
# figures of the README are no longer those of exactly this text.
set -euo pipefail

usage() { echo "usage: scripts/italian-manuals.sh FOLDER [--any-version]" >&2; exit 2; }
[ $# -eq 1 ] || { [ $# -eq 2 ] && [ "$2" = --any-version ]; } || usage
here=$(cd "$(dirname "$0")" && pwd)
any_version=${2:-}
mkdir -p "$1/packages"
folder=$(cd "$1" && pwd)
cd "$folder/packages"

# fetch PACKAGE VERSION SHA256: unpacks it into a folder of its name.
fetch() {
  local package=$1 version=$2 expected=$3 archive found
  archive="${package}_${version/:/%3a}_all.deb"
  if [ ! -f "$archive" ] && ! apt-get download --quiet "$package=$version" >&2; then
    if [ -z "$any_version" ]; then
      echo "$package $version cannot be fetched: this is not Debian 12, apt-get update did not run, or Debian has" >&2
      echo "replaced the package. hint: \`$0 $folder --any-version\` takes the version that there is" >&2
      exit 1
    fi
    apt-get download --quiet "$package" >&2
    archive=$(compgen -G "${package}_*.deb" | sort -V | tail -n 1)
  fi
  found=$(sha256sum "$archive" | cut -d ' ' -f 1)
  if [ "$found" != "$expected" ]; then
    echo "$folder/packages/$archive: expected SHA-256 $expected ($version), found $found" >&2
    if [ -z "$any_version" ]; then
      echo "hint: a broken download: delete the file; another version of the package: \`$0 $folder --any-version\`" >&2
      exit 1
    fi
  fi
  rm -rf "$package"
  dpkg-deb -x "$archive" "$package"
}

fetch libreoffice-help-it '4:7.4.7-1+deb12u14' 7fa29342a302bb495981fdabf98f3a9c3628123f3f191b2a5c95cb583c9ff212
fetch libreoffice-help-en-us '4:7.4.7-1+deb12u14' 8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712
fetch debian-handbook 11.20220922 3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa
python3 "$here/italian_manuals.py" "$folder/packages" "$folder"
