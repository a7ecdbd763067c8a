"""What a PhysioNet dataset is: one small declaration a version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

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
        title: As PhysioNet writes it.
        tables: Role to path. The roles ``metadata``, ``split`` and ``labels`` are joined into the manifest;
            any other role is only fetched.
        image_path: Pattern of an image's path, with the named groups group, subject_id, study_id, dicom_id.
        image_type: Content type of an image.
        image_bytes: Mean size of an image in bytes, for estimates (source: the size that PhysioNet's page states, whose GB
            are 2**30 bytes, by count: 570.3 GB of MIMIC-CXR-JPG are 612.4 GB, 4.7 TB of MIMIC-CXR 5.2 TB).
        access_point: ARN of PhysioNet's S3 access point for this version, or None.
        citation: How to cite the dataset, with its DOI.
    """

    slug: str
    version: str
    title: str
    tables: Mapping[str, str]
    image_path: re.Pattern[str]
    image_type: str = "image/jpeg"
    image_bytes: int = 1_624_000
    access_point: str | None = None
    citation: str = ""
    labels: tuple[str, ...] = field(default=LABELS)

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
        access_point=access_point,
        citation=(
            "Johnson, A., Lungren, M., Peng, Y., Lu, Z., Mark, R., Berkowitz, S., & Horng, S. MIMIC-CXR-JPG - chest "
            f"radiographs with structured labels (version {version}). PhysioNet. https://doi.org/{doi}"
        ),
    )


def _dicom(version: str, doi: str, access_point: str | None, **more_tables: str) -> Dataset:
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
        citation=(
            "Johnson, A., Pollard, T., Mark, R., Berkowitz, S., & Horng, S. MIMIC-CXR Database "
            f"(version {version}). PhysioNet. https://doi.org/{doi}"
        ),
    )


MIMIC_CXR_JPG = _jpg(
    "2.1.0",
    "10.13026/jsn5-t979",
    "arn:aws:s3:us-east-1:724665945834:accesspoint/mimic-cxr-jpg-v2-1-0-01",
    test_labels="mimic-cxr-2.1.0-test-set-labeled.csv",
    filenames="IMAGE_FILENAMES",
)
MIMIC_CXR_JPG_2_0_0 = _jpg("2.0.0", "10.13026/8360-t248", None)
MIMIC_CXR = _dicom("2.0.0", "10.13026/C2JT1Q", None)
MIMIC_CXR_2_1_0 = _dicom(
    "2.1.0",
    "10.13026/4jqj-jw95",
    "arn:aws:s3:us-east-1:724665945834:accesspoint/mimic-cxr-v2-1-0-01",
    providers="cxr-provider-list.csv.gz",
)

DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {d.name: d for d in (MIMIC_CXR_JPG, MIMIC_CXR_JPG_2_0_0, MIMIC_CXR, MIMIC_CXR_2_1_0)}
)
"""Every declared dataset by name (``slug/version``)."""
