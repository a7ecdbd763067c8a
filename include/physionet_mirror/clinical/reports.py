"""The reports of MIMIC-CXR by their sections: ``mimic-cxr-reports.zip`` becomes ``_mirror/reports.parquet``.

Columns, one row a study, in order of subject and study (zstd):

    ==============  ======  ============================================================================================
    subject_id      int32
    study_id        int32
    examination     string  what was done: EXAMINATION, EXAM, STUDY, PROCEDURE …
    indication      string  why: INDICATION, REASON FOR EXAM, HISTORY, CLINICAL INFORMATION …
    technique       string  how: TECHNIQUE, VIEWS
    comparison      string  COMPARISON, COMPARISONS, REFERENCE EXAM …
    findings        string  FINDINGS, and what stands under the name of a view (CHEST, TWO VIEWS:)
    impression      string  IMPRESSION, CONCLUSION, INTERPRETATION, FINDINGS AND IMPRESSION
    last_paragraph  string  of a report without findings and impression: the last paragraph that has no heading
    text            string  the whole report
    status          string  ``sections`` (findings and impression), ``findings only``, ``impression only``,
                            ``no headings`` (neither), ``empty`` (no text at all)
    ==============  ======  ============================================================================================

A section that a report does not have is null. White space is folded to single blanks; the underscores that stand for
what was taken out are kept. Where a heading stands twice, both texts are joined by a blank. Addenda, wet reads,
notifications and recommendations belong to no column but ``text``: they were written at another time or to another end.

The spellings are those that the dataset's authors found in the 227,835 reports (github.com/MIT-LCP/mimic-cxr,
txt/section_parser.py), with a few more; as there, a heading that names a view stands for findings, and one text under
FINDINGS AND IMPRESSION is the impression.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from physionet_mirror.errors import MetadataError

SECTIONS = ("examination", "indication", "technique", "comparison", "findings", "impression")
STATUSES = ("sections", "impression only", "findings only", "no headings", "empty")

SCHEMA = pa.schema(
    [
        ("subject_id", pa.int32()),
        ("study_id", pa.int32()),
        *((name, pa.string()) for name in (*SECTIONS, "last_paragraph", "text", "status")),
    ]
)

MOST_REPORTS = 1_000_000
MOST_OF_ONE = 1 << 20
"""Bytes of one report; the longest of MIMIC-CXR has less than 20 kB."""

MOST_IN_ALL = 2 << 30
"""Bytes of all reports unpacked; MIMIC-CXR's have about 250 MB."""

_BATCH = 8192  # reports held at a time

# --- headings ---------------------------------------------------------------------------------------------------------

_ADDENDUM, _OTHER, _TITLE = "addendum", "other", "title"
"""Kinds of text that are no column: of another time; under another heading of its own; before any heading."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    "examination": (
        "EXAMINATION",
        "EXAMINATIONS",
        "EXAM",
        "EXAMS",
        "TYPE OF EXAMINATION",
        "TYPE OF EXAM",
        "STUDY",
        "STUDIES",
        "PROCEDURE",
    ),
    "indication": (
        "INDICATION",
        "INDICATIONS",
        "CLINICAL INDICATION",
        "REASON FOR EXAMINATION",
        "REASON FOR EXAM",
        "REASON FOR THE EXAM",
        "REASON FOR STUDY",
        "REASON FOR THIS EXAMINATION",
        "HISTORY",
        "CLINICAL HISTORY",
        "PATIENT HISTORY",
        "HISTORY AND INDICATION",
        "INDICATION AND HISTORY",
        "CLINICAL INFORMATION",
        "CLINICAL DATA",
        "IDICATION",
        "NDICATION",
    ),
    "technique": ("TECHNIQUE", "TECHNIQUES", "TECHNIQUE AND VIEWS", "VIEWS", "VIEW"),
    "comparison": (
        "COMPARISON",
        "COMPARISONS",
        "COMPARISON EXAM",
        "COMPARISON FILM",
        "COMPARISON STUDY",
        "COMPARISON STUDIES",
        "REFERENCE EXAM",
        "COMPARISION",
        "COMPARISIONS",
        "COMPARSION",
        "COMPARRISON",
        "COMPARISSON",
    ),
    "findings": (
        "FINDINGS",
        "FINDING",
        "REFERENCE FINDINGS",
        "FINDINS",
        "FINDINDGS",
        "FINDGINGS",
        "FINDNGS",
        "FINDNINGS",
        "FINIDNGS",
    ),
    "impression": (
        "IMPRESSION",
        "IMPRESSIONS",
        "CONCLUSION",
        "CONCLUSIONS",
        "INTERPRETATION",
        "SUMMARY",
        "FINDINGS AND IMPRESSION",
        "FINDINGS AND IMPRESSIONS",
        "FINDINGS/IMPRESSION",
        "FINDINGS/ IMPRESSION",
        "FINDINGS / IMPRESSION",
        "FINDINGS & IMPRESSION",
        "IMPRESSION AND FINDINGS",
        "IMPRESSION/FINDINGS",
        "IMPRESSON",
        "IMPRRESSION",
        "IMPRESION",
        "IMPRESSOIN",
        "IMPRSSION",
        "IMPRESSSION",
        "IMPERSSION",
        "IMPRESSIO",
        "IMPESSION",
        "IMORESSION",
        "MPRESSION",
    ),
    _ADDENDUM: ("ADDENDUM", "ADDENDA", "FINAL ADDENDUM", "WET READ", "WETREAD"),
    _OTHER: (
        "PRELIMINARY READ",
        "PRELIMINARY REPORT",
        "PROVISIONAL FINDINGS IMPRESSION (PFI)",
        "PROVISIONAL FINDINGS IMPRESSION",
        "PFI",
        "NOTIFICATION",
        "NOTIFICATIONS",
        "RECOMMENDATION",
        "RECOMMENDATIONS",
        "RECOMMENDATION(S)",
        "COMMENT",
        "COMMENTS",
        "DATE",
    ),
    _TITLE: ("FINAL REPORT",),
}

_KIND = {name: kind for kind, names in _NAMES.items() for name in names}

# Of a heading that is none of these, what it holds tells what it is, in this order.
_HOLDS = (
    ("IMPRESSION", "impression"),
    ("FINDINGS", "findings"),
    ("HISTORY", "indication"),
    ("REASON FOR", "indication"),
    ("COMPARISON", "comparison"),
    ("ADDENDUM", _ADDENDUM),
    ("RECOMMENDATION", _OTHER),
    ("NOTIFICATION", _OTHER),
)
_VIEW = re.compile(
    r"CHEST|PORTABLE|TWO VIEWS|ONE VIEW|(?:FRONTAL|PA|AP|LATERAL) VIEW|(?:PA|AP|LATERAL) AND |FRONTAL |BONE WINDOW|RIBS"
)

# Too common as plain words to be headings in the midst of a line.
_ONLY_AT_START = frozenset(
    {"DATE", "VIEW", "VIEWS", "STUDY", "STUDIES", "EXAM", "EXAMS", "PROCEDURE", "COMMENT", "COMMENTS", "SUMMARY", "PFI"}
)

# All repetitions are bounded, so that no text takes more than its length times a constant.
_CAPITALS = r"[A-Z][A-Z ()/,&-]{0,60}[A-Z)]"
_COLON = re.compile(rf"(?:(^)[ \t]{{0,200}})?(?<![A-Za-z])({_CAPITALS})[ \t]{{0,20}}:(?=\s|\Z)", re.MULTILINE)
_LINE = re.compile(
    r"^[ \t]{0,200}(?:"
    r"(?P<ruler>_{10,200}[ \t]{0,200}$)"
    r"|(?P<title>FINAL REPORT|FINAL ADDENDUM|ADDENDUM|WET ?READ)\b(?![ \t]{0,20}:)"
    rf"|(?P<alone>{_CAPITALS})[ \t]{{0,200}}$"
    r"|(?P<inline>[A-Z][A-Z /&]{2,60}?)[ \t]{1,20}(?=[A-Z]?[a-z]|[0-9_]|A [a-z])"
    r"|(?P<small>[A-Z][a-z]{2,20}(?: [A-Za-z]{2,20}){0,3})[ \t]{0,20}:(?=\s|\Z)"
    r")",
    re.MULTILINE,
)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_LETTER = re.compile(r"[^\W_]")


class Report(NamedTuple):
    """One report by its sections; the module's docstring lists them."""

    examination: str | None
    indication: str | None
    technique: str | None
    comparison: str | None
    findings: str | None
    impression: str | None
    last_paragraph: str | None
    text: str | None
    status: str


def parse(text: str) -> Report:
    """Split one report into its sections."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts = _parts(text)
    last = None if any(map(_says_something, parts)) else _take_last_paragraph(parts)
    found: dict[str, str | None] = {}
    for name in SECTIONS:
        said = (part for part in parts if part[0] == name and (name not in _WANTED or _says_something(part)))
        found[name] = " ".join(" ".join(part for _, part in said).split()) or None
    if found["findings"] and found["impression"]:
        status = "sections"
    elif found["findings"] or found["impression"]:
        status = "findings only" if found["findings"] else "impression only"
    else:
        status = "no headings" if last or any(_LETTER.search(part) for _, part in parts) else "empty"
    return Report(**found, last_paragraph=last, text=" ".join(text.split()) or None, status=status)


_WANTED = ("findings", "impression")


def _says_something(part: tuple[str, str]) -> bool:
    """Whether it is findings or an impression and not only what de-identification left: CHEST, TWO VIEWS: ___."""
    return part[0] in _WANTED and _LETTER.search(part[1]) is not None


def _parts(text: str) -> list[tuple[str, str]]:
    """The whole text in pieces, each with its kind: a section, or one that is no column."""
    parts: list[tuple[str, str]] = []
    kind, begun, is_closed = _TITLE, 0, False
    headings = _headings(text)
    last_title = max((number for number, heading in enumerate(headings) if heading[2] == _TITLE), default=-1)
    for number, (start, end, next_kind) in enumerate(headings):
        is_closed = is_closed and next_kind != _TITLE
        if is_closed:  # a heading of the addendum's own
            continue
        parts.append((kind, text[begun:start]))
        kind, begun = next_kind, end
        # Before the report it ends where that begins; if nothing says where, at the first heading.
        is_closed = kind == _ADDENDUM and (number < last_title or any(map(_says_something, parts)))
    return [*parts, (kind, text[begun:])]


def _headings(text: str) -> list[tuple[int, int, str]]:
    """Where each heading starts and ends, and what it heads; in order, none within another."""
    found = []
    for match in _COLON.finditer(text):
        name, at_start = " ".join(match[2].split()), match[1] is not None
        kind = _KIND.get(name)
        if kind and (at_start or name not in _ONLY_AT_START):
            found.append((match.start(), match.end(), kind))
        elif at_start:
            if guessed := _guess(name):
                found.append((match.start(), match.end(), guessed))
        else:  # the end of a line in capitals: NO CHANGE IMPRESSION:
            words = name.split()
            for first in range(1, len(words)):
                name = " ".join(words[first:])
                if (kind := _KIND.get(name)) and name not in _ONLY_AT_START:
                    found.append((match.start(2) + match[2].rindex(words[first]), match.end(), kind))
                    break
    for match in _LINE.finditer(text):
        which = match.lastgroup or ""
        if which in ("ruler", "title"):
            found.append((match.start(), match.end(which), _KIND[match["title"] or "FINAL REPORT"]))
        elif kind := _KIND.get(" ".join(match[which].split()).upper()):
            found.append((match.start(), match.end(), kind))
    found.sort()
    headings: list[tuple[int, int, str]] = []
    for heading in found:
        if not headings or heading[0] >= headings[-1][1]:
            headings.append(heading)
    return headings


def _guess(name: str) -> str | None:
    for part, kind in _HOLDS:
        if part in name:
            return kind
    return "findings" if _VIEW.search(name) else None


def _take_last_paragraph(parts: list[tuple[str, str]]) -> str | None:
    """Take the last paragraph that stands under no heading out of the parts: the first one after a heading is its own."""
    for number in range(len(parts) - 1, -1, -1):
        kind, part = parts[number]
        if kind in (_OTHER, _ADDENDUM):
            continue
        paragraphs = [paragraph for paragraph in _PARAGRAPHS.split(part) if _LETTER.search(paragraph)]
        own = 0 if kind == _TITLE else 1
        if len(paragraphs) > own:
            if own:
                parts[number] = (kind, paragraphs[0])
            return " ".join(paragraphs[-1].split())
    return None


# --- the archive ------------------------------------------------------------------------------------------------------

_MEMBER = re.compile(r"(?:[^/]+/)*p1\d/p(?P<subject>1\d{7})/s(?P<study>\d{8})\.txt")
_NEXT = (
    "Nothing was written. The file's checksum is what PhysioNet publishes, so fetching it again does not help: open it by "
    "hand, and tell PhysioNet's support if it is damaged."
)


@dataclass(frozen=True)
class Built:
    """What `build` wrote.

    Attributes:
        reports: Rows, one a study.
        status: Reports by status, in the order of `STATUSES`.
        ignored: Files of the archive that are no report of a study.
    """

    reports: int
    status: Mapping[str, int]
    ignored: int


def build(archive: Path | BinaryIO, out: Path | BinaryIO) -> Built:
    """Read the archive, report by report, and write the table; no more than `_BATCH` reports are held at a time.

    Args:
        archive: ``mimic-cxr-reports.zip``: ``files/p10/p10000032/s50414267.txt`` and so on.
        out: Receives ``reports.parquet``.

    Raises:
        MetadataError: It is no archive, is damaged, unpacks to more than reports can have, holds a path that leaves it, two
            reports of one study, or a report that is not UTF-8. What is written to ``out`` is then of no use.
    """
    counts: Counter[str] = Counter()
    with pq.ParquetWriter(out, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        try:
            with zipfile.ZipFile(archive) as opened:
                members, ignored = _members(opened)
                for at in range(0, len(members), _BATCH):
                    rows = list(_rows(opened, members[at : at + _BATCH]))
                    columns = [
                        pa.array(cells, field.type)
                        for cells, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
                    ]
                    counts.update(columns[-1].to_pylist())
                    writer.write_table(pa.table(columns, schema=SCHEMA))
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
            OSError,
            ValueError,
        ) as error:
            raise _bad(f"it cannot be read ({(str(error).splitlines() or [type(error).__name__])[0][:200]})") from error
    return Built(sum(counts.values()), {status: counts[status] for status in STATUSES}, ignored)


def _members(archive: zipfile.ZipFile) -> tuple[list[tuple[int, int, zipfile.ZipInfo]], int]:
    """The reports in order of subject and study, once their names and sizes have passed; and how many files are none."""
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > MOST_REPORTS:
        raise _bad(f"it holds {len(infos):,} files, and at most {MOST_REPORTS:,} are read")
    reports, total = {}, 0
    for info in infos:
        name = info.filename
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise _bad(f"the path {name[:100]!r} leads out of it")
        if not (match := _MEMBER.fullmatch(name)):
            continue
        total += info.file_size
        if info.file_size > MOST_OF_ONE or total > MOST_IN_ALL:
            raise _bad(f"it unpacks to more than reports have ({name[:100]!r} alone to {info.file_size:,} bytes)")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 0x1:
            raise _bad(f"{name[:100]!r} is packed in an unusual way, or encrypted")
        key = int(match["subject"]), int(match["study"])
        if key in reports:
            raise _bad(f"{name[:100]!r} is a second report of its study")
        reports[key] = info
    if not reports:
        raise _bad("it holds no report: no path looks like files/p10/p10000032/s50414267.txt")
    return [(*key, reports[key]) for key in sorted(reports)], len(infos) - len(reports)


def _rows(archive: zipfile.ZipFile, members: list[tuple[int, int, zipfile.ZipInfo]]) -> Iterator[tuple[Any, ...]]:
    for subject, study, info in members:
        with archive.open(info) as opened:
            raw = opened.read(MOST_OF_ONE + 1)
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text or len(raw) > MOST_OF_ONE:
            raise _bad(f"{info.filename[:100]!r} is no text in UTF-8") from None  # the cause would quote the report
        yield (subject, study, *parse(text))


def _bad(fault: str) -> MetadataError:
    return MetadataError(f"mimic-cxr-reports.zip: {fault}. {_NEXT}")
