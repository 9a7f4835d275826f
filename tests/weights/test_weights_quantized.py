"""Quantized live weights: the same bits in every layout and placement, and theta that knows nothing of them."""

import itertools

import numpy as np
import pytest
import torch
from histories import COEFFICIENTS, SEEDS, cut, make_model, read_from

from esmpi.noise.format import FULL, Noise
from esmpi.noise.quantization import TYPES, quantize, shapes
from esmpi.weights import views as views_module
from esmpi.weights.host import Weights
from esmpi.weights.shard import WeightShard
from esmpi.weights.views import View

MODEL = {"a.weight": (23, 301), "b.weight": (40, 64), "norm.weight": (9,), "embed.weight": (11, 30)}
SMALL = {"a.weight": (7, 70), "b.weight": (6, 33), "norm.weight": (9,), "embed.weight": (3, 5)}
"""For Triton's interpreter."""
QUANTIZED = {"a.weight", "b.weight"}
KINDS = list(TYPES)


def views(model: dict[str, torch.Tensor], kind: str | None, row_parts: int = 1) -> list[View]:
    found = []
    for name, tensor in model.items():
        if kind is None or name not in QUANTIZED:
            found.append(View.whole(name, torch.empty(tensor.shape)))
            continue
        for first, end in cut(len(tensor), row_parts):
            numbers, of_scales = shapes(TYPES[kind], end - first, tensor.shape[1])
            live, scales = torch.empty(numbers, dtype=TYPES[kind]), torch.empty(of_scales)
            found.append(View(name, tuple(tensor.shape), (first, end), (0, tensor.shape[1]), live, scales))
    return found


def live_of(weights: Weights) -> dict[str, bytes]:
    """All bytes of the live weights, quantized numbers and scales each in the order of their rows."""
    found: dict[str, bytes] = {}
    for view in weights.views:
        assert view.live is not None
        for name, values in ((view.name, view.live), (f"{view.name} scales", view.scales)):
            if values is not None:
                found[name] = found.get(name, b"") + values.contiguous().view(torch.uint8).numpy().tobytes()
    return found


def quantized(live: torch.Tensor, kind: str) -> tuple[bytes, bytes]:
    form, of_scales = shapes(TYPES[kind], *live.shape)
    numbers, scales = torch.empty(form, dtype=TYPES[kind]), torch.empty(of_scales)
    quantize(numbers, scales, live)
    return numbers.view(torch.uint8).numpy().tobytes(), scales.numpy().tobytes()


def weights_of(
    kind: str | None, row_parts: int = 1, num_threads: int = 2, shapes: dict[str, tuple[int, ...]] = MODEL
) -> Weights:
    model = make_model(shapes)
    return Weights(views(model, kind, row_parts), lambda view: read_from(model, view), num_threads)


def states(weights: Weights, noise: Noise, shapes: dict[str, tuple[int, ...]] = MODEL) -> list[object]:
    """What is seen of weights in a generation, but theta itself."""
    seen: list[object] = [live_of(weights), weights.digest()]
    weights.perturb(int(SEEDS[0]), -3e-3, None, noise)
    seen.append(live_of(weights))
    weights.perturb(int(SEEDS[1]), 0.1, ["b.weight", "norm.weight"], noise)
    seen.append(live_of(weights))
    weights.update(SEEDS, COEFFICIENTS, noise)
    weights.show(lambda view: read_from(make_model(shapes, seed=5), view))
    seen.append(live_of(weights))
    weights.restore()
    return [*seen, live_of(weights), weights.digest()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [FULL, Noise(2), Noise(1, {"a.weight": 0.3, "b.weight": 0.0})], ids=str)
def test_a_member_is_the_quantized_form_of_its_perturbed_theta(kind: str, noise: Noise) -> None:
    weights, plain = weights_of(kind), weights_of(None)
    for perturb in (False, True):
        if perturb:
            for one in (weights, plain):
                one.perturb(77, 0.02, None, noise)
        live = live_of(weights)
        for view in plain.views:
            assert view.live is not None
            if view.name in QUANTIZED:
                expected = quantized(view.live, kind)
                assert (live[view.name], live[f"{view.name} scales"]) == expected
            else:
                assert live[view.name] == view.live.numpy().tobytes()
    for one in (weights, plain):
        one.update(SEEDS, COEFFICIENTS, noise)
    assert weights.digest() == plain.digest(), "theta is not quantized"


@pytest.mark.parametrize("kind", KINDS)
def test_layout_and_threads_change_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = states(weights_of(kind), FULL)
    assert len({str(state) for state in expected}) == len(expected)
    assert states(weights_of(kind, row_parts=5, num_threads=1), FULL) == expected
    monkeypatch.setattr(views_module, "QUANTIZED_AT_ONCE", 700)  # blocks of a few rows
    assert states(weights_of(kind, row_parts=2), FULL) == expected


@pytest.mark.parametrize(
    ("kind", "noise"),
    [
        ("int8", FULL),
        ("fp8", Noise(2)),
        ("fp8", Noise(0, {"a.weight": 0.3, "b.weight": 0.0, "norm.weight": 1.0})),
        ("int4", Noise(1)),
    ],
    ids=str,
)
def test_placements_on_a_gpu_change_no_bit(kind: str, noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="pip install triton")
    from esmpi.weights import streamed
    from esmpi.weights.device import DeviceWeights

    expected = states(weights_of(kind, shapes=SMALL), noise, SMALL)
    model = make_model(SMALL)
    monkeypatch.setattr(views_module, "QUANTIZED_AT_ONCE", 150)
    monkeypatch.setattr(streamed, "_STAGING_ELEMENTS", 160)
    for placement in (DeviceWeights, streamed.StreamedWeights):
        weights = placement(views(model, kind, 2), lambda view: read_from(model, view), 1)
        assert states(weights, noise, SMALL) == expected


@pytest.mark.parametrize(("kind", "step"), [("int8", 200), ("int4", 13)])
def test_live_weights_are_shown_as_what_they_stand_for(kind: str, step: int) -> None:
    weights = weights_of(kind)
    shard = WeightShard(weights, base=None)  # type: ignore[arg-type]
    theta = make_model(MODEL)["a.weight"]
    [(_, _, live)] = shard.parts("a.weight", live=True)
    assert live.dtype == torch.float32
    assert 0 < float((live - theta).abs().max()) < float(theta.abs().max()) / step
    assert shard.num_infinite() == 0
    weights.load(lambda view: torch.full((view.rows[1] - view.rows[0], view.cols[1] - view.cols[0]), torch.inf))
    weights.restore()
    assert shard.num_infinite() == sum(int(np.prod(shape)) for shape in MODEL.values())


def test_only_whole_rows_can_be_quantized() -> None:
    live, scales = torch.empty((4, 6), dtype=torch.int8), torch.empty(4)
    View("a", (4, 6), (0, 4), (0, 6), live, scales)
    wrong = torch.empty(3), scales.bfloat16()
    for columns, own, where in itertools.product([(0, 6), (6, 12)], [*wrong, scales], [live, live.float()]):
        if columns == (0, 6) and own is scales and where is live:
            continue
        with pytest.raises(ValueError, match=r"a: (only whole rows|quantized rows must have float32 scales)"):
            View("a", (4, columns[1]), (0, 4), columns, where, own)
    with pytest.raises(ValueError, match="cannot be perturbed"):
        View("a", (4, 6), (0, 4), (0, 6), live)
