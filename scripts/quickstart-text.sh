#!/usr/bin/env bash
# Fetches the English text that the bundled quickstart model is trained on: public-domain works out of Debian packages.
#
#   scripts/quickstart-text.sh FOLDER      writes FOLDER/english.jsonl (one document a line: {"text": ...})
#
# Needs a Debian system with package lists (apt-get update), dpkg-deb and python3. Nothing is installed; the packages stay
# in FOLDER/packages and are not fetched twice. What each contains and its licence: data/README.md.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: scripts/quickstart-text.sh FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/packages"
folder=$(cd "$1" && pwd)

cd "$folder/packages"
for package in r-cran-janeaustenr sword-text-web sqlite3-doc jargon-text; do
  if ! compgen -G "${package}_*.deb" >/dev/null; then
    echo "fetching $package" >&2
    apt-get download --quiet "$package" >&2 || {
      echo "$package: apt-get download failed; is this Debian, and did apt-get update run?" >&2
      exit 1
    }
  fi
  archive=$(compgen -G "${package}_*.deb" | sort -V | tail -n 1)
  rm -rf "$package"
  dpkg-deb -x "$archive" "$package"
  echo "$archive" >&2
done
python3 "$here/quickstart_text.py" "$folder/packages" "$folder/english.jsonl"
