"""The plan page's form accepts and refuses the same values as a run, with the same messages, and truncates nothing."""

from __future__ import annotations

import time

import pytest
from starlette.datastructures import QueryParams

from physionet_airflow.page import form
from physionet_airflow.params import mirror_params
from physionet_mirror.errors import InputError
from physionet_mirror.request import Request


@pytest.fixture(scope="module")
def params():
    specs = {name: param.dump() for name, param in mirror_params().items()}
    return {
        name: {"value": spec["value"], "description": spec["description"] or "", "schema": dict(spec["schema"])}
        for name, spec in specs.items()
    }


def read(params, **given):
    pairs = [
        (n, v)
        for n, value in ({"bucket": "lab-bucket"} | given).items()
        for v in (value if isinstance(value, list) else [value])
    ]
    return form.read(params, QueryParams(pairs))


def test_thousands_of_patients_are_all_taken(params):
    ids = [str(10_000_000 + n) for n in range(65_000)]
    began = time.process_time()
    seen = read(params, subjects="\n".join(ids))
    assert time.process_time() - began < 20
    assert seen.conf["subjects"] == ids
    assert seen.request.selection.subjects == tuple(ids)


def test_what_is_longer_than_the_form_takes_is_refused_and_never_cut(params):
    seen = read(params, subjects="\n".join(str(10_000_000 + n) for n in range(120_000)))
    assert seen.request is None
    assert "at most 1,000,000 are taken" in seen.errors["subjects"]
    assert "Nothing was cut" in seen.errors["subjects"]
    assert not seen.conf["subjects"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("sample_size", "0", 0),
        ("sample_size", "1" + "0" * 30, 10**30),
        ("sample_size", "many", "many"),
        ("seed", "9" * 40, int("9" * 40)),
        ("connections", "99", 99),
        ("approve_above_gb", "nan", "nan"),
        ("approve_above_gb", "-1", -1),
        ("approve_above_gb", "1e300", int(1e300)),
        ("approve_above_gb", "inf", "inf"),
        ("views", [""], [""]),
        ("views", ["PA", " "], ["PA", ""]),
        ("subjects", "10000032,,10000033", ["10000032", "", "10000033"]),
        ("bucket", "Not_A_Bucket", "Not_A_Bucket"),
        ("prefix", "a/../b", "a/../b"),
    ],
)
def test_page_and_run_refuse_in_the_same_words(params, name, text, value):
    seen = read(params, **{name: text})
    assert seen.request is None
    with pytest.raises(InputError) as refused:
        Request.from_params({"bucket": "lab-bucket", name: value})
    assert seen.errors[name] == str(refused.value).partition(": ")[2].replace(" Nothing was done.", "")


@pytest.mark.parametrize("text", ["", "\n", "  \n\n", "10000032\n\n10000033\n", "10000032, 10000033,"])
def test_empty_lines_are_no_entries(params, text):
    assert read(params, subjects=text).request.selection.subjects in ((), ("10000032", "10000033"))


def test_a_name_that_no_param_has_is_refused_with_the_nearest(params):
    seen = read(params, sampel_size="5")
    assert seen.request is None
    assert "sampel_size" in seen.error
    assert "`sample_size`" in seen.error
    assert read(params, form="1", sample_size="5").request.selection.sample_size == 5
