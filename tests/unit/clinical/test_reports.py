"""Reports are split by their headings in any spelling; an archive without reports is refused."""

from __future__ import annotations

import io
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physionet_mirror.clinical import reports
from physionet_mirror.errors import MetadataError

USUAL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with new onset ascites  // eval for infection
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  Chest radiograph ___.
 
 FINDINGS: 
 
 There is no focal consolidation, pleural effusion or
 pneumothorax.
 
 LINES AND TUBES:  None.
 
 IMPRESSION: 
 
 No acute cardiopulmonary process.
 
 NOTIFICATION:  Dr. ___ was told.
"""  # noqa: W291, W293  # blank lines hold a blank, as in MIMIC-CXR


def test_a_usual_report() -> None:
    assert reports.parse(USUAL) == reports.Report(
        examination="CHEST (PA AND LAT)",
        indication="___F with new onset ascites // eval for infection",
        technique="Chest PA and lateral",
        comparison="Chest radiograph ___.",
        findings="There is no focal consolidation, pleural effusion or pneumothorax. LINES AND TUBES: None.",
        impression="No acute cardiopulmonary process.",
        last_paragraph=None,
        text=" ".join(USUAL.split()),
        status="sections",
    )


@pytest.mark.parametrize(
    ("text", "section", "content"),
    [
        ("FINDINGS\n Clear.", "findings", "Clear."),
        ("FINDINGS Clear lungs.", "findings", "Clear lungs."),
        ("Findings: Clear.", "findings", "Clear."),
        (" FINDINGS :  Clear.", "findings", "Clear."),
        ("CHEST, TWO VIEWS:  Clear.", "findings", "Clear."),
        ("PORTABLE AP CHEST:  Clear.", "findings", "Clear."),
        ("FINDNGS: Clear.", "findings", "Clear."),
        ("FINDINGS AND IMPRESSION:  Clear.", "impression", "Clear."),
        ("FINDINGS/ IMPRESSION:  Clear.", "impression", "Clear."),
        ("CONCLUSION:  Clear.", "impression", "Clear."),
        ("CONCLUSION\n Clear.", "impression", "Clear."),
        ("INTERPRETATION:  Clear.", "impression", "Clear."),
        ("IMPRESSON:  Clear.", "impression", "Clear."),
        ("IMPRESSION  1. Clear.", "impression", "1. Clear."),
        ("IMPRESSION A normal chest.", "impression", "A normal chest."),
        ("Seen. IMPRESSION: Clear.", "impression", "Clear."),
        ("NO CHANGE SINCE THEN IMPRESSION: Clear.", "impression", "Clear."),
        ("IMPRESSION:\r\n\r\n Clear.\r\n", "impression", "Clear."),
        ("IMPRESSION: One.\n\nIMPRESSION: Two.", "impression", "One. Two."),
        ("REASON FOR EXAM:  Cough.", "indication", "Cough."),
        ("CLINICAL HISTORY:  Cough.", "indication", "Cough."),
        ("HISTORY: ___-year-old.\n INDICATION: Cough.", "indication", "___-year-old. Cough."),
        ("REFERENCE EXAM:  ___", "comparison", "___"),
        ("COMPARISONS:  None.", "comparison", "None."),
        ("COMPARISON EXAM:  None.", "comparison", "None."),
        ("STUDY:  Chest.", "examination", "Chest."),
        ("VIEWS:  PA.", "technique", "PA."),
    ],
)
def test_spellings(text: str, section: str, content: str) -> None:
    assert getattr(reports.parse(text), section) == content


@pytest.mark.parametrize(
    "after",
    [
        "NOTIFICATION:  Dr. ___ was told.",
        "RECOMMENDATION(S):  CT.",
        "WET READ: ___ ___ 9:11 AM\n  Edema.",
        "WET READ VERSION #1 ___ 9:11 AM\n  Edema.",
        "PROVISIONAL FINDINGS IMPRESSION (PFI): ___ 9:11 AM\n Edema.",
        "ADDENDUM\n The side was wrong.\n FINDINGS:  Left.\n IMPRESSION:  Left.",
        "ADDENDUM  Dr. ___ was told.",
        "______________________________________________________________________________\n Signed.",
    ],
)
def test_what_was_written_at_another_time_is_no_impression(after: str) -> None:
    assert reports.parse(f"FINDINGS:  Some.\n\n IMPRESSION:  Clear.\n \n {after}").impression == "Clear."


def test_a_wet_read_before_the_final_report_is_none_of_its_sections() -> None:
    found = reports.parse("WET READ: ___ 9:11 AM\n  FINDINGS: Edema.\n IMPRESSION: Edema.\n" + "_" * 78 + "\n" + USUAL)
    assert found._replace(text="") == reports.parse(USUAL)._replace(text="")


def test_an_addendum_before_the_report_does_not_swallow_it() -> None:
    found = reports.parse("ADDENDUM  Dr. ___ was told.\n EXAMINATION: Chest.\n FINDINGS: Some.\n IMPRESSION: Clear.")
    assert (found.examination, found.findings, found.impression) == ("Chest.", "Some.", "Clear.")


@pytest.mark.parametrize(
    ("text", "status", "last"),
    [
        (USUAL, "sections", None),
        ("IMPRESSION: Clear.", "impression only", None),
        ("FINDINGS: Clear.", "findings only", None),
        ("FINAL REPORT\n One.\n \n Two\n lines.\n", "no headings", "Two lines."),
        ("INDICATION:  Fall.\n \n As before.\n", "no headings", "As before."),
        ("INDICATION:\n \n Fall.\n", "no headings", None),
        ("INDICATION:  Fall.\n \n As before.\n \n NOTIFICATION:  Dr. ___", "no headings", "As before."),
        ("CHEST, TWO VIEWS:  ___\n \n INDICATION: Fall.", "no headings", None),
        ("", "empty", None),
        ("                                 FINAL REPORT\n ___\n", "empty", None),
    ],
)
def test_status_and_last_paragraph(text: str, status: str, last: str | None) -> None:
    found = reports.parse(text)
    assert (found.status, found.last_paragraph) == (status, last)
    assert found.indication in (None, "Fall.", "___F with new onset ascites // eval for infection")


NAMES = st.sampled_from([name for names in reports._NAMES.values() for name in names if name not in ("DATE", "VIEW")])
WORDS = ["clear", "lungs", "no", "___", "effusion", "2", "cm.", "stable;", "heart"]
SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1).map(" ".join)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(NAMES, SENTENCE, st.sampled_from(["\n ", "\n \n ", "\r\n"])), min_size=1, max_size=8))
def test_a_section_never_contains_anothers_heading(sections: list[tuple[str, str, str]]) -> None:
    found = reports.parse("".join(f"{name}:  {text}.{end}" for name, text, end in sections))

    for section in reports.SECTIONS:
        content = getattr(found, section) or ""
        assert not [name for name, _, _ in sections if f"{name}:" in content]
        assert content == " ".join(content.split())
    assert (found.text or "").count("___") == sum(text.count("___") for _, text, _ in sections)


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("FINDINGS IMPRESSION:\n\r_ abc,A.\t")) | st.text())
def test_any_text_has_a_status_and_loses_nothing(text: str) -> None:
    found = reports.parse(text)
    assert found.status in reports.STATUSES
    assert (found.text or "") == " ".join(text.split())
    assert (found.status == "sections") == (found.findings is not None and found.impression is not None)
    for section in (*reports.SECTIONS, "last_paragraph"):
        content = getattr(found, section)
        assert content is None or content.split()
        assert section in ("findings", "impression") or content is None or found.text


def test_a_text_made_to_be_slow_is_not() -> None:
    for piece in ("A ", "A B,", " ", "_", "A\n", "FINDINGS ", "Aa Aa "):
        assert reports.parse(piece * (reports.MOST_OF_ONE // 4 // len(piece))).status in reports.STATUSES


# -- the archive -------------------------------------------------------------------------------------------------------

A, B = "files/p10/p10000032/s50414267.txt", "files/p11/p11000011/s50000001.txt"


def archive(*files: tuple[str | zipfile.ZipInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files:
            opened.writestr(name, data, zipfile.ZIP_DEFLATED)
    return out


def test_one_row_a_study_in_order_whatever_the_order_of_the_archive() -> None:
    out = io.BytesIO()
    found = reports.build(archive((f"mimic-cxr-reports/{B}", USUAL.encode()), (A, b""), ("LICENSE.txt", b"CC0")), out)

    assert (found.reports, found.ignored) == (2, 1)
    assert found.status == {
        "sections": 1, "impression only": 0, "findings only": 0, "no headings": 0, "empty": 1,
    }  # fmt: skip
    table = pq.read_table(out)
    assert table.schema.equals(reports.SCHEMA)
    assert table.column_names == [
        *("subject_id", "study_id", "examination", "indication", "technique", "comparison", "findings", "impression"),
        *("last_paragraph", "text", "status"),
    ]
    assert [(row["subject_id"], row["study_id"], row["status"]) for row in table.to_pylist()] == [
        (10000032, 50414267, "empty"),
        (11000011, 50000001, "sections"),
    ]
    assert table.column("findings")[0].as_py() is None


MARKER = b"RESTRICTED SENTENCE OF A REPORT"


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ([("../" + A, MARKER)], "leads out of it"),
        ([("/" + A, MARKER)], "leads out of it"),
        ([("files/../../" + A, MARKER)], "leads out of it"),
        ([("c:\\" + A, MARKER)], "leads out of it"),
        ([(A, MARKER), (f"again/{A}", MARKER)], "a second report of its study"),
        ([(A, MARKER + b"\xff")], "no text in UTF-8"),
        ([(A, MARKER.decode().encode("utf-16"))], "no text in UTF-8"),
        ([(A, MARKER + b"\0")], "no text in UTF-8"),
        ([("README", MARKER)], "holds no report"),
        ([], "holds no report"),
    ],
)
def test_an_archive_of_other_things_is_refused_without_a_word_of_it(files: list[tuple[str, bytes]], fault: str) -> None:
    with pytest.raises(MetadataError, match=fault) as caught:
        reports.build(archive(*files), io.BytesIO())
    assert "Nothing was written" in str(caught.value)
    assert MARKER.decode() not in repr(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MetadataError, match="unpacks to more than reports have"):
        reports.build(archive((A, b" " * (reports.MOST_OF_ONE + 1))), io.BytesIO())
    monkeypatch.setattr(reports, "MOST_IN_ALL", 1500)
    with pytest.raises(MetadataError, match="unpacks to more than reports have"):
        reports.build(archive((A, b" " * 1000), (B, b" " * 1000)), io.BytesIO())


def test_a_bomb_that_lies_about_its_size_is_refused() -> None:
    packed = bytearray(archive((A, b" " * (20 << 20))).getvalue())
    size = (20 << 20).to_bytes(4, "little")
    assert packed.count(size) == 2
    with pytest.raises(MetadataError, match="cannot be read"):
        reports.build(io.BytesIO(bytes(packed.replace(size, (100).to_bytes(4, "little")))), io.BytesIO())


def test_what_is_no_archive_or_a_damaged_one_is_refused() -> None:
    good = archive((A, USUAL.encode())).getvalue()
    spoilt = bytearray(good)
    spoilt[60] ^= 0xFF
    for data in (b"", b"<html>Log in</html>", good[:-10], bytes(spoilt)):
        with pytest.raises(MetadataError, match=r"mimic-cxr-reports.zip: it cannot be read"):
            reports.build(io.BytesIO(data), io.BytesIO())


def test_an_unusual_packing_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr(A, USUAL)
    with pytest.raises(MetadataError, match="packed in an unusual way"):
        reports.build(out, io.BytesIO())


def test_a_byte_order_mark_is_no_part_of_the_report() -> None:
    out = io.BytesIO()
    reports.build(archive((A, b"\xef\xbb\xbfFINDINGS: Clear.")), out)
    assert pq.read_table(out)["findings"].to_pylist() == ["Clear."]
    assert pa.types.is_int32(pq.read_schema(out).field("study_id").type)
