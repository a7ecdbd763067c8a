"""docs/training.md works as written, on an index of 200 images."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from physionet_mirror import index
from tests.unit.made_up import FakeBucket, make_manifest, make_verdict

DOCS = Path(__file__).parents[3] / "docs"


class TestTrainingPage:
    """docs/training.md works as written."""

    BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "training.md").read_text(), re.DOTALL)

    @pytest.fixture
    def names(self, tmp_path, capsys):
        """The names that the page's first block defines, run on an index of 200 images."""
        bucket = FakeBucket()
        rows, manifest = make_manifest(200)
        index.update(bucket, make_verdict(rows), io.BytesIO(manifest))
        file = tmp_path / "index.parquet"
        file.write_bytes(bucket.read("_mirror/index.parquet"))
        names = {}
        exec(self.BLOCKS[0].replace("s3://my-bucket/mimic-cxr-jpg/2.1.0/_mirror/index.parquet", str(file)), names)
        assert "patients" in capsys.readouterr().out
        return names

    def test_pandas(self, names):
        chosen = names["pneumonia"]
        assert 0 < len(chosen) < len(names["index"]) == 200
        assert set(chosen["Pneumonia"]) == {0, 1}
        assert set(chosen["view"]) == {"AP", "PA"}

    def test_pytorch(self, names, monkeypatch):
        torch = pytest.importorskip("torch")
        from PIL import Image

        picture = io.BytesIO()
        Image.new("L", (40, 30), 255).save(picture, "PNG")
        client = SimpleNamespace(get_object=lambda **_: {"Body": io.BytesIO(picture.getvalue())})
        monkeypatch.setattr("boto3.client", lambda _: client)
        exec(next(block for block in self.BLOCKS if "torch" in block), names)
        dataset = names["Radiographs"](names["pneumonia"], "Pneumonia")
        pixels, label = dataset[0]
        assert pixels.shape == (1, 224, 224)
        assert float(pixels.max()) == 1
        assert float(label) in {0, 1}
        assert len(list(torch.utils.data.DataLoader(dataset, batch_size=8))) == -(-len(dataset) // 8)
