"""How many images a task decodes at once is what the environment says, or all cores."""

from __future__ import annotations

import pytest

from physionet_airflow import training
from physionet_mirror.errors import InputError


@pytest.mark.parametrize(("text", "count"), [(None, None), ("", None), ("1", 1), ("016", 16)])
def test_the_environment_says_how_many_are_decoded_at_once(
    text: str | None, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(training.CPUS, raising=False)
    if text is not None:
        monkeypatch.setenv(training.CPUS, text)
    assert training.cpus() == count


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "99999"])
def test_what_is_no_number_of_cores_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(training.CPUS, text)
    with pytest.raises(InputError, match=r"MIMIC_CXR_CPUS is .* must be a whole number above zero"):
        training.cpus()
