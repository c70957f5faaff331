"""The stored outputs of mmdet3d are those that it gives."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from make_mmdet3d_outputs import Arrays, of_kitti, of_network
from mmdet3d_networks import CONFIGS, outputs


@pytest.mark.parametrize(
    ("network", "make"), [("kitti", of_kitti), *((name, partial(of_network, name)) for name in CONFIGS)]
)
def test_stored_outputs_are_those_of_mmdet3d(network: str, make: Callable[[], Arrays]) -> None:
    stored, found = outputs(network), make()
    assert stored.keys() == found.keys()
    for name, values in found.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(stored[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(stored[name], values, name)
