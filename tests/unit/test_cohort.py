"""A selection is counted once, whether its rows come from Parquet or from pandas."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from physionet_mirror.cohort import count

ROWS = st.lists(
    st.tuples(
        st.integers(1, 4),  # patient
        st.sampled_from(["p10", "p11"]),
        st.sampled_from(["train", "test", None]),
        st.sampled_from(["PA", "AP", "LL", None]),
        st.sampled_from([1, 0, -1, None]),
        st.booleans(),  # verified
    ),
    max_size=30,
)


@given(ROWS)
def test_counts_equal_what_a_loop_counts(rows):
    columns = ("subject_id", "group", "split", "view", "Edema")
    values = {name: [row[n] for row in rows] for n, name in enumerate(columns)}
    types = {"subject_id": "int32", "group": "string", "split": "string", "view": "string", "Edema": "Int8"}
    verified = [row[5] for row in rows]
    arrow = {"subject_id": pa.int32(), "Edema": pa.int8()}
    table = pa.table({name: pa.array(cells, arrow.get(name, pa.string())) for name, cells in values.items()})
    counts = count(table, pa.array(verified, pa.bool_()), ["Edema", "Fracture"])
    assert counts == count(pd.DataFrame(values).astype(types), verified, ["Edema", "Fracture"])
    assert (counts.images, counts.verified) == (len(rows), sum(verified))
    assert (counts.patients, counts.studies) == (len({row[0] for row in rows}), None)
    assert counts.labels == [("Edema", values["Edema"].count(1), values["Edema"].count(-1))]
    for found, column in ((counts.groups, 1), (counts.splits, 2), (counts.views, 3)):
        assert {value.name: (value.images, value.verified) for value in found} == {
            name or "": (
                sum(row[column] == name for row in rows),
                sum(row[column] == name and row[5] for row in rows),
            )
            for name in {row[column] for row in rows}
        }
    assert [value.images for value in counts.views] == sorted((v.images for v in counts.views), reverse=True)
    assert [value.name for value in counts.groups] == sorted(value.name for value in counts.groups)
