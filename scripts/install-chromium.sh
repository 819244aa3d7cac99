#!/bin/sh
# Headless Chromium for the report's tests, on Debian and as root; elsewhere those tests are skipped with a sentence.
set -e
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Chromium is not here and cannot be installed (not root, or no apt-get): the tests of the page are skipped." >&2
    exit 0
fi
if ! { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1; then
    echo "Chromium could not be installed: the tests of the page are skipped." >&2
fi
