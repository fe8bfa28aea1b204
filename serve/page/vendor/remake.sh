#!/usr/bin/env bash
# Fetches the libraries of the page anew from the npm registry, as their authors minified them, and writes LIBRARIES.txt.
# For a newer version change its number here. What the packages hold beyond these files is left out.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf fonts ./*.js ./*.css
cat > LIBRARIES.txt <<'END'
Libraries of the page, unchanged but for two things: the lines that point to source maps, and fonts other than woff2.
remake.sh fetches them anew and writes this file. Their licences follow below, in the same order.

END
: > "$work/licences"

# named NAME VERSION LICENCE WHERE: fetch a package, list it and keep its licence
named() {
  (cd "$work" && npm pack --silent "$1@$2" > /dev/null && rm -rf package && tar xzf ./*.tgz && rm ./*.tgz)
  printf '%-18s %-24s %-9s %s\n' "$4" "$1" "$2" "$3" >> LIBRARIES.txt
  { printf '\n\n======== %s %s (%s)\n\n' "$1" "$2" "$3"; cat "$(ls "$work"/package/LICENSE* | head -n 1)"; } >> "$work/licences"
}

# take NAME VERSION LICENCE FILE-IN-PACKAGE NAME-HERE
take() {
  named "$1" "$2" "$3" "$5"
  sed '/^\/\/# sourceMappingURL=/d' "$work/package/$4" > "$here/$5"
}

take markdown-it 15.0.3 MIT dist/browser/markdown-it.esm.min.mjs markdown-it.js
named linkify-it 6.1.0 MIT '  (inside of it)'
named mdurl 2.1.0 MIT '  (inside of it)'
named uc.micro 3.0.0 MIT '  (inside of it)'
named punycode.js 2.3.1 MIT '  (inside of it)'
named entities 8.1.0 BSD-2-Clause '  (inside of it)'
take dompurify 3.4.18 Apache-2.0 dist/purify.min.js dompurify.js  # or MPL-2.0: we take the former
take @highlightjs/cdn-assets 11.12.0 BSD-3-Clause es/highlight.min.js highlight.js
take katex 0.19.1 MIT dist/katex.min.js katex.js
mkdir fonts
cp "$work"/package/dist/fonts/*.woff2 fonts/
sed -E 's/,url\([^)]*\.(woff|ttf)\) format\("[a-z0-9]+"\)//g' "$work/package/dist/katex.min.css" > katex.css
echo 'katex.css, fonts/ from katex, too' >> LIBRARIES.txt
cat "$work/licences" >> LIBRARIES.txt
