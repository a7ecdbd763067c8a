"""Projects by name: the known ones, and any other."""

from __future__ import annotations

import re

import pytest

from physionet_mirror.dataset import DATASETS, KNOWN, project


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_project_is_found_by_name_and_address_and_states_nothing_unproven(name: str) -> None:
    known = KNOWN[name]
    assert known.name == name
    assert project(name) is project(f"https://physionet.org/content/{name}/") is known
    assert bool(known.citation) == (name in DATASETS)  # for the others, the project's page says how to cite it
    if known.access_point:
        slug, version = known.slug, known.version.replace(".", "-")
        assert re.fullmatch(rf"arn:aws:s3:us-east-1:724665945834:accesspoint/{slug}-v{version}-01", known.access_point)


def test_a_version_that_lists_four_files_says_so_where_it_is_chosen() -> None:
    assert "four top-level files" in KNOWN["mimic-cxr/2.0.0"].note
    assert "DICOM" in KNOWN["mimic-cxr/2.1.0"].note


def test_any_other_project_has_its_name_for_a_title() -> None:
    found = project("ecg-of-tomorrow/0.1")
    assert (found.title, found.citation, found.access_point, found.image_bytes) == ("ecg-of-tomorrow/0.1", "", None, 0)
