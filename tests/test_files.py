"""Files as others find them."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paretune.files import sync_files


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_can_be_read_by_those_who_may_read_other_files(
    umask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").chmod(0o600)  # as some versions leave it
        (tmp_path / "config.json").write_text("{}")
        sync_files(tmp_path)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
