"""Boxes regressed at the peaks alone are those of the dense head."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import config
from vocabulary import CLASSES, NUSCENES

from perception.config import parse_config
from perception.frame import Conditions
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.tasks.detection.center_head import CenterHead
from perception.tasks.detection.config import DetectionHead
from perception.tasks.detection.peaks import PeakHead, at_peaks
from perception.tasks.detection.task import DetectionTask

GRID = BevGrid(x=(-3.5, 3.5), y=(-2.5, 2.5), cell=1.0)  # 5 x 7 cells
ROWS, COLUMNS = GRID.shape
GROUPS = (CLASSES[:4], CLASSES[4:])


def head_of(kernel: int, attributes: str = "learned", top_k: int = 6, subcells: int = 1) -> CenterHead:
    """With random weights, and normalisations that make zero something else: what lies beyond the map must matter."""
    content = {"channels": 4, "groups": GROUPS, "output_kernel": kernel, "attributes": attributes, "top_k": top_k}
    content["subcells"] = dict.fromkeys((CLASSES[0], CLASSES[4]), subcells)
    torch.manual_seed(kernel)
    head = DetectionTask(DetectionHead.model_validate(content), GRID, NUSCENES).network(3).eval()
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.bias.uniform_(0.3, 1)
    return head


def with_peaks(dense: dict[str, torch.Tensor], cells: list[list[int]]) -> dict[str, torch.Tensor]:
    """The first class of every heatmap peaks at these cells of each frame, the first highest."""
    changed = dict(dense)
    for name in [name for name in dense if "heatmap" in name]:
        heat = torch.full_like(dense[name], -9.0)
        across = heat.shape[-1] // COLUMNS
        for frame, chosen in enumerate(cells):
            for cell, logit in zip(chosen, torch.linspace(3, 1, len(chosen)), strict=True):
                heat[frame, 0, cell // COLUMNS * across + across - 1, cell % COLUMNS * across] = logit
        changed[name] = heat
    return changed


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.sampled_from([1, 3]),
    attributes=st.sampled_from(["learned", "speed"]),
    subcells=st.sampled_from([1, 2, 4]),
    cells=st.lists(
        st.lists(st.integers(0, ROWS * COLUMNS - 1), min_size=6, max_size=6, unique=True), min_size=1, max_size=2
    ),
    seed=st.integers(0, 2**16),
)
def test_boxes_at_any_cells_are_those_of_the_dense_head(
    kernel: int, attributes: str, subcells: int, cells: list[list[int]], seed: int
) -> None:
    head = head_of(kernel, attributes, subcells=subcells)
    head.config = head.config.model_copy(update={"peaks": False})  # all cells may be peaks, side by side
    lean: Any = at_peaks(head)
    assert isinstance(lean, PeakHead)
    x = torch.randn(len(cells), 3, ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = head.decode(with_peaks(head(x), cells))
        found = lean.decode(with_peaks(lean(x), cells))
    assert expected.keys() == found.keys()
    assert expected["boxes"].shape == (len(cells), 2, 6, 10)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_every_cell_of_the_map_and_its_border() -> None:
    """All cells at once: no box is of a neighbour's."""
    head = head_of(3, top_k=ROWS * COLUMNS)
    head.config = head.config.model_copy(update={"peaks": False})
    x = torch.randn(1, 3, ROWS, COLUMNS)
    with torch.no_grad():
        expected, found = head.decode(head(x)), at_peaks(head).decode(at_peaks(head)(x))  # type: ignore[operator]
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-5, rtol=1e-5)


def test_modules_at_branches_keep_the_dense_head_and_those_that_fold_do_not() -> None:
    def deployed(slots: str, kind: str) -> Any:
        module = {"name": "m", "kind": kind, "slots": [slots]}
        content = config().model_dump(mode="json") | {"modules": [module]}
        return PerceptionModel(parse_config(content, "modular")).deployed(Conditions()).heads["detection"]

    assert isinstance(deployed("heads.detection.size", "bottleneck"), CenterHead)
    assert isinstance(deployed("heads.detection.heatmap", "bottleneck"), PeakHead)
    assert isinstance(deployed("heads.detection.size", "low_rank"), PeakHead)


def test_a_deployed_network_has_the_parameters_of_the_trained_one() -> None:
    model = PerceptionModel(config())
    lean = model.deployed()
    assert sum(p.numel() for p in lean.parameters()) == sum(p.numel() for p in model.parameters())
