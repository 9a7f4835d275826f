"""Views from a loader: what it does to the checkpoint's tensors is found out, or refused by the parameter's name."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from esmpi.errors import UserError
from esmpi.model.base_model import StoredTensor
from esmpi.weights.probe import cut, derive_views, fingerprint, own_memory

SHAPES = {
    **{"q": (300, 70), "k": (40, 70), "embed": (29, 70), "down": (70, 600), "norm": (70,)},
    **{"up": (80, 300), "gate": (40, 40), "experts": (3, 6, 5)},
}
STORED = [StoredTensor(name, shape, "F32", Path("file")) for name, shape in SHAPES.items()]


class Model:
    """Rank 1 of 2 of a made-up engine: fuses, pads and shards as real ones do."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.parameters = {
            "qk": torch.zeros(170, 70, dtype=dtype),  # rows 150..299 of q, then 20..39 of k
            "embed": torch.zeros(16, 70, dtype=dtype),  # rows 16..28, then padding
            "down": torch.zeros(70, 300, dtype=dtype),  # columns 300..599
            "norm": torch.zeros(70, dtype=dtype),
            "experts": torch.zeros(3, 4, 5, dtype=dtype),  # rows 2..5 of each matrix
            "turned": torch.zeros(340, 40, dtype=dtype),  # rows 0..39 of up and of gate, transposed
        }

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            if name == "q":
                self.parameters["qk"][:150] = tensor[150:]
            elif name == "k":
                self.parameters["qk"][150:] = tensor[20:]
            elif name == "experts":
                self.parameters["experts"].copy_(tensor[:, 2:])
            elif name == "up":
                self.parameters["turned"][:300] = tensor.T[:, :40]
            elif name == "gate":
                self.parameters["turned"][300:] = tensor.T[:, :40]
            elif name == "embed":
                self.parameters["embed"][:13] = tensor[16:]
                self.parameters["embed"][13:] = 0
            elif name == "down":
                self.parameters["down"].copy_(tensor[:, 300:])
            else:
                self.parameters["norm"].copy_(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_padded_and_sharded_tensors_are_found(dtype: torch.dtype) -> None:
    model = Model(dtype)
    views = derive_views(model.parameters, model.load, STORED)
    assert [(view.name, view.shape, view.rows, view.cols) for view in views] == [
        ("q", (300, 70), (150, 300), (0, 70)),
        ("k", (40, 70), (20, 40), (0, 70)),
        ("embed", (29, 70), (16, 29), (0, 70)),
        ("down", (70, 600), (0, 70), (300, 600)),
        ("norm", (70,), (0, 70), (0, 1)),
        ("experts", (3, 6, 5), (0, 3), (10, 30)),
        ("up", (80, 300), (0, 40), (0, 300)),
        ("gate", (40, 40), (0, 40), (0, 40)),
    ]
    torch.manual_seed(0)
    values = {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}
    for view in views:
        assert view.live is not None
        whole = values[view.name].view(view.shape[0], -1)
        view.live.copy_(whole[slice(*view.rows), slice(*view.cols)])
    through_views = {name: fingerprint(parameter) for name, parameter in model.parameters.items()}
    model.load(values.items())
    assert through_views == {name: fingerprint(parameter) for name, parameter in model.parameters.items()}


def test_what_only_shows_another_ones_memory_is_left_out() -> None:
    whole, other = torch.zeros(6, 4), torch.zeros(8)
    shown = {"turned": whole.T, "rows": whole[2:4], "again": whole.view(4, 6)[:], "columns": whole[:, 1:3]}
    parameters = {"whole": whole, **shown, "other": other, "copy": whole.T.clone(), "empty": torch.zeros(0)}
    assert list(own_memory(parameters)) == ["whole", "other", "copy", "empty"]
    # parts of one piece of memory that is no parameter itself
    parts = {"left": other[:3], "right": other[3:]}
    assert list(own_memory(parts)) == ["left", "right"]


def test_parts_of_a_view() -> None:
    model = Model(torch.float32)
    view = derive_views(model.parameters, model.load, STORED)[0]
    parts = list(cut(view, [0, 150, 200, 299, 300, 400]))
    assert [part.rows for part in parts] == [(150, 200), (200, 299), (299, 300)]
    assert view.live is not None
    assert torch.equal(torch.cat([part.live for part in parts if part.live is not None]), view.live)


def refusal(parameters: dict[str, torch.Tensor], load: object) -> str:
    with pytest.raises(UserError) as caught:
        derive_views(parameters, load, STORED)  # type: ignore[arg-type]
    return str(caught.value)


def test_what_views_cannot_express_is_refused_by_name() -> None:
    def loads(parameter: torch.Tensor, source: str, change: object) -> str:
        def load(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
            parameter.copy_(change(dict(tensors)[source]))  # type: ignore[operator]

        return refusal({"strange": parameter}, load)

    assert "parameter strange is empty" in refusal({"strange": torch.zeros(0)}, list)
    assert "strange is not filled" in refusal({"strange": torch.zeros(4, 4)}, list)
    assert "strange of shape (4, 3) is not contiguous" in refusal({"strange": torch.zeros(3, 4).T}, list)
    square = torch.zeros(70, 70)
    assert "loader changes the values of parameter strange" in loads(square, "q", lambda t: t[:70] + 0.5)
    assert "in no order that ES can follow" in loads(square, "q", lambda t: t[:70].tril() + t[:70].T.triu(1))
    assert "neighbouring columns" in loads(square, "q", lambda t: t[:70].flip(1))
    # rows in another order are many small views: allowed, and right
    views = derive_views({"strange": square}, lambda tensors: square.copy_(dict(tensors)["q"][:70].flip(0)), STORED)
    assert [view.rows for view in views][:2] == [(69, 70), (68, 69)]


def test_the_fingerprint_sees_order_and_every_bit() -> None:
    torch.manual_seed(0)
    values = torch.randn(3000)
    seen = {fingerprint(values)}
    for i in range(0, 3000, 100):
        changed = values.clone()
        changed.view(torch.int32)[i] ^= 1 << (i // 100)
        seen.add(fingerprint(changed))
    seen.add(fingerprint(values.flip(0)))
    assert len(seen) == 32
