"""What a PhysioNet project is: its slug and version, and what is known of some of them beforehand.

`project` takes any ``slug/version``; one that nobody has declared here works as well as one that has a line in `KNOWN`. Only
the radiographs of `DATASETS` have more: tables that describe the images, from which their manifest is joined.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from physionet_mirror.errors import InputError

SUMS = "SHA256SUMS.txt"
"""The checksum file at the root of every PhysioNet version."""

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The 14 CheXpert labels, in the column order of the published tables."""

SPLITS = ("train", "validate", "test")
GROUPS = tuple(f"p{n}" for n in range(10, 20))

_MIMIC_PATH = (
    r"files/(?P<group>p1\d)/p(?P<subject_id>\d{8})/s(?P<study_id>\d{8})"
    r"/(?P<dicom_id>[0-9a-f]{8}(?:-[0-9a-f]{8}){4})\.%s"
)


@dataclass(frozen=True)
class Dataset:
    """One version of one PhysioNet project.

    Attributes:
        slug: The project's name in PhysioNet's URLs, ``mimic-cxr-jpg``.
        version: ``2.1.0``.
        title: What it is called; the name of a project that is not declared.
        tables: Role to path. The roles ``metadata``, ``split`` and ``labels`` are joined into the manifest;
            any other role is only fetched.
        image_path: Pattern of an image's path, with the named groups group, subject_id, study_id, dicom_id; None where
            the files are no radiographs.
        image_type: Content type of an image.
        image_bytes: Mean size of a file (of an image, where it has some) in bytes, for estimates; 0 = not known. (Source: the
            size that PhysioNet's page states, whose GB are 2**30 bytes, by count: 570.3 GB of MIMIC-CXR-JPG are 612.4 GB,
            4.7 TB of MIMIC-CXR 5.2 TB.)
        access_point: ARN of PhysioNet's S3 access point for this version, or None.
        citation: How to cite the dataset, with its DOI; empty = the project's page says.
        note: A few words on what it holds, for the trigger form.
        labels: Names of the label columns.
    """

    slug: str
    version: str
    title: str = ""
    tables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    image_path: re.Pattern[str] | None = None
    image_type: str = "image/jpeg"
    image_bytes: int = 0
    access_point: str | None = None
    citation: str = ""
    note: str = ""
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``mimic-cxr-jpg/2.1.0``: the path below PhysioNet's ``/files/`` and the default key prefix."""
        return f"{self.slug}/{self.version}"

    @property
    def describes_images(self) -> bool:
        """Whether its tables say more of each image than its path does, so that without images they are of no use."""
        return "metadata" in self.tables

    @property
    def page(self) -> str:
        """The project's page, where the data use agreement is signed."""
        return f"https://physionet.org/content/{self.slug}/{self.version}/"

    @property
    def agreement_page(self) -> str:
        """The page on which a credentialed user signs the data use agreement."""
        return f"https://physionet.org/sign-dua/{self.slug}/{self.version}/"


def _jpg(version: str, doi: str, access_point: str | None, **more_tables: str) -> Dataset:
    return Dataset(
        slug="mimic-cxr-jpg",
        version=version,
        title="MIMIC-CXR-JPG - chest radiographs with structured labels",
        tables=MappingProxyType(
            {
                "metadata": "mimic-cxr-2.0.0-metadata.csv.gz",
                "split": "mimic-cxr-2.0.0-split.csv.gz",
                "labels": "mimic-cxr-2.0.0-chexpert.csv.gz",
                "negbio": "mimic-cxr-2.0.0-negbio.csv.gz",
                **more_tables,
            }
        ),
        image_path=re.compile(_MIMIC_PATH % "jpg"),
        image_bytes=1_624_000,
        access_point=access_point,
        note="377,110 radiographs as JPG, 612 GB",
        labels=LABELS,
        citation=(
            "Johnson, A., Lungren, M., Peng, Y., Lu, Z., Mark, R., Berkowitz, S., & Horng, S. MIMIC-CXR-JPG - chest "
            f"radiographs with structured labels (version {version}). PhysioNet. https://doi.org/{doi}"
        ),
    )


def _dicom(version: str, doi: str, access_point: str | None, note: str, **more_tables: str) -> Dataset:
    return Dataset(
        slug="mimic-cxr",
        version=version,
        title="MIMIC-CXR Database",
        tables=MappingProxyType(
            {"records": "cxr-record-list.csv.gz", "studies": "cxr-study-list.csv.gz", **more_tables}
        ),
        image_path=re.compile(_MIMIC_PATH % "dcm"),
        image_type="application/dicom",
        image_bytes=13_700_000,
        access_point=access_point,
        note=note,
        labels=LABELS,
        citation=(
            "Johnson, A., Pollard, T., Mark, R., Berkowitz, S., & Horng, S. MIMIC-CXR Database "
            f"(version {version}). PhysioNet. https://doi.org/{doi}"
        ),
    )


_POINT = "arn:aws:s3:us-east-1:724665945834:accesspoint/"

MIMIC_CXR_JPG = _jpg(
    "2.1.0",
    "10.13026/jsn5-t979",
    _POINT + "mimic-cxr-jpg-v2-1-0-01",
    test_labels="mimic-cxr-2.1.0-test-set-labeled.csv",
    filenames="IMAGE_FILENAMES",
)
MIMIC_CXR_JPG_2_0_0 = _jpg("2.0.0", "10.13026/8360-t248", None)
MIMIC_CXR = _dicom("2.0.0", "10.13026/C2JT1Q", None, "its SHA256SUMS.txt lists four top-level files, no radiograph")
MIMIC_CXR_2_1_0 = _dicom(
    "2.1.0",
    "10.13026/4jqj-jw95",
    _POINT + "mimic-cxr-v2-1-0-01",
    "the reports (mimic-cxr-reports.zip), and the radiographs as DICOM, 5.2 TB",
    providers="cxr-provider-list.csv.gz",
)

DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {d.name: d for d in (MIMIC_CXR_JPG, MIMIC_CXR_JPG_2_0_0, MIMIC_CXR, MIMIC_CXR_2_1_0)}
)
"""The datasets of radiographs by name (``slug/version``)."""


def _known(name: str, title: str, note: str = "", *, mean_bytes: int = 0, point: str | None = None) -> Dataset:
    slug, _, version = name.partition("/")
    return Dataset(
        slug,
        version,
        title,
        image_bytes=mean_bytes,
        access_point=None if point is None else _POINT + point,
        note=note,
    )


KNOWN: Mapping[str, Dataset] = MappingProxyType(
    {
        d.name: d
        for d in (
            _known("mimiciv/3.1", "MIMIC-IV", "41 files, 10.6 GB", mean_bytes=10_600_000_000 // 41),
            _known("mimiciv/2.2", "MIMIC-IV", "an earlier version", point="mimiciv-v2-2-01"),
            _known("mimic-iv-ed/2.2", "MIMIC-IV-ED", "emergency department stays"),
            _known("mimic-iv-note/2.2", "MIMIC-IV-Note", point="mimic-iv-note-v2-2-01"),
            _known("mimic-iv-ecg/1.0", "MIMIC-IV-ECG", "90 GB in very many small files", point="mimic-iv-ecg-v1-0-01"),
            _known("vindr-cxr/1.0.0", "VinDr-CXR", point="vindr-cxr-v1-0-0-01"),
            _known("chest-imagenome/1.0.0", "Chest ImaGenome"),
        )
    }
    | dict(DATASETS)
)
"""The projects of which something is known beforehand, by name; any other works as well. How to cite one that states no
citation here, its page says."""

NAME = r"[a-z0-9][a-z0-9-]{0,99}/[0-9A-Za-z][0-9A-Za-z.-]{0,49}"
"""What a project's name looks like, ``slug/version``."""


def project(name: object) -> Dataset:
    """Any project by its name, ``slug/version``, as the end of its page's address gives it.

    Raises:
        InputError: It is no such name. The message says how it would be written, where that can be told.
    """
    text = str(name or "").strip()
    if address := re.fullmatch(
        r"(?:https?://)?(?:www\.)?physionet\.org/(?:content|files)/([^/?#]+)/([^/?#]+)/?.*", text
    ):
        text = f"{address[1]}/{address[2]}"
    text = text.strip("/")
    if not re.fullmatch(NAME, text):
        alike = sorted(known for known in KNOWN if known.partition("/")[0] == text.lower().partition("/")[0])
        raise InputError(
            f"project: {str(name or '')[:80]!r} is no project's name such as mimiciv/3.1 (slug/version, as in the address of "
            "its page at PhysioNet). Nothing was done." + (f" Did you mean {' or '.join(alike)}?" if alike else "")
        )
    slug, _, version = text.partition("/")
    return KNOWN.get(text) or Dataset(slug, version, text)
