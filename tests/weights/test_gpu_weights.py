"""The GPU kernels and placements have the bits of the CPU's: run by Triton's interpreter where there is no GPU."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from histories import DTYPES, assert_same_history, live_of, make_model, read_from, same, sharded_views, whole_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from esmpi.errors import UserError
from esmpi.noise import cpu, member_seed
from esmpi.noise.format import Noise
from esmpi.weights.host import Weights
from esmpi.weights.views import View

pytest.importorskip("triton", reason="pip install triton")

from esmpi.noise.gpu import DeviceBlock, DeviceBlocks, to_device
from esmpi.weights import streamed as streamed_module
from esmpi.weights.device import DeviceWeights, check_gpu
from esmpi.weights.streamed import StreamedWeights

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16).cpu().numpy()


@settings(max_examples=20)
@given(st.data())
def test_kernels_have_the_bits_of_the_cpu_kernels(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 31, 32, 300, 1024, 8191]))
    first = data.draw(st.one_of(st.integers(0, 1100), st.integers(2**33 - 300, 2**33 + 300), st.integers(0, 2**41)))
    stride = cols + data.draw(st.integers(0, 5000))
    seed, key = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 2**64 - 1))
    dtype, gap = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(0, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    theta = rng.normal(size=(rows, cols)).astype(np.float32)
    wide = torch.zeros((rows, cols + gap), dtype=dtype, device=DEVICE)
    on_device = torch.from_numpy(theta.copy()).to(DEVICE)
    blocks = DeviceBlocks([DeviceBlock(on_device, wide[:, :cols], first, stride, key)])

    blocks.perturb(*to_device(np.array([seed], np.uint64), np.array([-0.03], np.float32), DEVICE))
    expected = torch.zeros((rows, cols), dtype=dtype)
    target = bits(expected).view(np.uint16) if dtype == torch.bfloat16 else expected.numpy()
    cpu.perturb(target, theta, first, stride, key, seed, -0.03)
    assert np.array_equal(bits(wide[:, :cols]), bits(expected))
    assert not wide[:, cols:].any()

    seeds = np.array([seed, seed ^ 1, seed ^ 2], np.uint64)
    coefficients = np.array([1e-3, -2e-3, 5e-4], np.float32)
    blocks.update(*to_device(seeds, coefficients, DEVICE))
    cpu.update(theta, first, stride, key, seeds, coefficients)
    assert np.array_equal(bits(on_device), theta.view(np.int32))
    assert blocks.digest() == cpu.digest(theta, first, stride, key)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_round_oddly_are_cast_alike(dtype: torch.dtype) -> None:
    odd = [0x7F7FFFFF, 0x7F800000, -0x800000, 0x7FC00001, 0x3F808000, 0x3F818000, 1, -0x80000000]
    # for float16: the largest, the first that is infinite, and those around the smallest normal and subnormal ones
    odd += [0x477FEFFF, 0x477FF000, 0x387FFFFF, 0x38800000, 0x387FE000, 0x33800000, 0x33000000, 0x33000001, 0x33C00000]
    theta = torch.tensor([odd]).to(torch.int32).view(torch.float32).to(DEVICE)
    live = torch.empty((1, len(odd)), dtype=dtype, device=DEVICE)
    blocks = DeviceBlocks([DeviceBlock(theta, live, 0, 0, 1)])
    blocks.perturb(*to_device(np.array([2], np.uint64), np.array([1e-30], np.float32), DEVICE))
    expected = torch.empty((1, len(odd)), dtype=dtype)
    target = bits(expected).view(np.uint16) if dtype == torch.bfloat16 else expected.numpy()
    cpu.perturb(target, theta.cpu().numpy(), 0, 0, 1, 2, 1e-30)
    finite = ~torch.isnan(expected)
    assert np.array_equal(bits(live.cpu()[finite]), bits(expected[finite]))
    assert torch.isnan(live.cpu()).equal(~finite)


def test_the_check_at_the_start_passes_and_finds_a_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    check_gpu(DEVICE)
    made_right = DeviceBlocks.update

    def fused(self: DeviceBlocks, seeds: torch.Tensor, coefficients: torch.Tensor) -> None:
        made_right(self, seeds, coefficients)
        theta = self._blocks[0].theta
        theta[0, 7777] = torch.nextafter(theta[0, 7777], theta.new_tensor(9.0))

    monkeypatch.setattr(DeviceBlocks, "update", fused)
    with pytest.raises(UserError, match=r"makes other bits on this GPU than esmpi does on a CPU \(digest of"):
        check_gpu(DEVICE)


MODEL = {"a.weight": (5, 301), "conv.weight": (4, 3, 5, 7), "b.bias": (9,), "c.weight": (2, 1500)}


def views_on_device(row_parts: int, col_parts: int, dtype: torch.dtype, turned: bool = False) -> list[View]:
    views = sharded_views(make_model(MODEL), row_parts, col_parts, dtype, turned)
    moved = []
    for view in views:
        assert view.live is not None
        moved.append(View(view.name, view.shape, view.rows, view.cols, view.live.to(DEVICE)))
    return moved


@pytest.mark.parametrize(
    ("row_parts", "col_parts", "dtype"),
    [(1, 1, torch.bfloat16), (1, 2, torch.float32), (3, 2, torch.bfloat16), (2, 3, torch.float16)],
)
@pytest.mark.parametrize("kind", [DeviceWeights, StreamedWeights])
def test_placements_have_the_bits_of_host_weights(
    monkeypatch: pytest.MonkeyPatch, kind: type[Weights], row_parts: int, col_parts: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(streamed_module, "_STAGING_ELEMENTS", 700)  # so that theta takes several turns
    model = make_model(MODEL)
    weights = kind(views_on_device(row_parts, col_parts, dtype), lambda view: read_from(model, view), 1)
    assert_same_history(weights, whole_weights(model, dtype))


@pytest.mark.parametrize("noise", [Noise(), Noise(2, {"a.weight": 0.3})])
@pytest.mark.parametrize(
    ("kind", "base"), [(Weights, False), (DeviceWeights, False), (StreamedWeights, False), (StreamedWeights, True)]
)
def test_what_the_engine_holds_transposed_has_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, kind: type[Weights], base: bool, noise: Noise
) -> None:
    monkeypatch.setattr(streamed_module, "_STAGING_ELEMENTS", 700)
    model = make_model(MODEL)
    turned = views_on_device(2, 1, torch.bfloat16, turned=True)
    assert any(view.live is not None and view.live.stride(1) != 1 for view in turned)
    weights = kind(turned, lambda view: read_from(model, view), 1, bf16_base=base)
    reference = Weights(sharded_views(model, 1, 1, torch.bfloat16), lambda view: read_from(model, view), 1, None, base)
    for one in (weights, reference):
        one.perturb(11, -0.02, None, noise)
    assert same(live_of(weights), live_of(reference))
    for one in (weights, reference):
        one.update(np.array([5, 6], np.uint64), np.array([1e-3, -2e-3], np.float32), noise)
        one.restore()
    assert same(live_of(weights), live_of(reference))
    assert weights.digest() == reference.digest()


SCALES = {"a.weight": 0.3, "conv.weight": 2.5, "b.bias": 1.0}


@pytest.mark.parametrize("noise", [Noise(1), Noise(3), Noise(0, SCALES), Noise(2, SCALES)], ids=str)
@pytest.mark.parametrize(("kind", "base"), [(DeviceWeights, False), (StreamedWeights, False), (StreamedWeights, True)])
def test_any_noise_has_the_bits_of_host_weights(
    monkeypatch: pytest.MonkeyPatch, kind: type[Weights], base: bool, noise: Noise
) -> None:
    monkeypatch.setattr(streamed_module, "_STAGING_ELEMENTS", 700)
    model = make_model(MODEL)
    weights = kind(views_on_device(3, 2, torch.bfloat16), lambda view: read_from(model, view), 1, bf16_base=base)
    whole = kind(views_on_device(1, 1, torch.bfloat16), lambda view: read_from(model, view), 1, bf16_base=base)
    on_host = sharded_views(model, 1, 1, torch.bfloat16)
    reference = Weights(on_host, lambda view: read_from(model, view), 1, bf16_base=base)
    before = {name: tensor.clone() for name, tensor in live_of(reference).items()}
    for one in (weights, whole, reference):
        one.perturb(11, -0.02, None, noise)
    assert same(live_of(weights), live_of(reference))
    assert same(live_of(whole), live_of(reference))
    moved = {name for name, tensor in live_of(reference).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, shape in MODEL.items() if noise.scale(name, shape)}
    for one in (weights, whole, reference):
        one.update(np.array([5, 6, 7], np.uint64), np.array([1e-3, 0.0, -2e-3], np.float32), noise)
        one.restore()
    assert same(live_of(weights), live_of(reference))
    assert weights.digest() == whole.digest() == reference.digest()


def test_streamed_theta_is_one_piece_of_memory_of_its_size() -> None:
    """Each tensor by itself would be rounded up to a power of two by torch's allocator of pinned memory."""
    model = make_model(MODEL)
    weights = StreamedWeights(views_on_device(3, 2, torch.bfloat16), lambda view: read_from(model, view), 1)
    parts = sorted((theta.data_ptr(), theta.nbytes) for _, theta in weights.theta())
    assert all(start + num_bytes == after for (start, num_bytes), (after, _) in itertools.pairwise(parts))
    assert sum(num_bytes for _, num_bytes in parts) == sum(tensor.nbytes for tensor in model.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bfloat16_base_changes_live_weights_and_not_theta(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(streamed_module, "_STAGING_ELEMENTS", 700)
    model = make_model(MODEL)
    streamed = StreamedWeights(views_on_device(3, 2, dtype), lambda view: read_from(model, view), 1, bf16_base=True)
    on_host = Weights(sharded_views(model, 1, 1, dtype), lambda view: read_from(model, view), 1, bf16_base=True)
    assert_same_history(streamed, on_host)
    master = whole_weights(model, dtype)
    for weights in (on_host, master):
        weights.perturb(member_seed(0, 0, 1), 1e-3)
    assert not same(live_of(on_host), live_of(master))
    rounded = {name: tensor.bfloat16().float() for name, tensor in model.items()}
    of_rounded = whole_weights(rounded, dtype)
    fresh = Weights(sharded_views(model, 1, 1, dtype), lambda view: read_from(model, view), 1, bf16_base=True)
    for weights in (of_rounded, fresh):
        weights.perturb(member_seed(0, 0, 1), 1e-3)
    assert same(live_of(fresh), live_of(of_rounded))
    assert fresh.digest() == whole_weights(model, dtype).digest()


@pytest.mark.parametrize("kind", [DeviceWeights, StreamedWeights])
def test_one_tensor_and_some_views_alone(monkeypatch: pytest.MonkeyPatch, kind: type[Weights]) -> None:
    monkeypatch.setattr(streamed_module, "_STAGING_ELEMENTS", 700)
    model = make_model(MODEL)
    weights = kind(views_on_device(1, 1, torch.float32), lambda view: read_from(model, view), 1)
    reference = whole_weights(model, torch.float32)
    for one in (weights, reference):
        one.perturb(3, 0.5, ["conv.weight"])
    assert same(live_of(weights), live_of(reference))
    assert weights.digest({1, 3}) == reference.digest({1, 3}) != weights.digest()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "base"), [(DeviceWeights, False), (StreamedWeights, False), (StreamedWeights, True)])
def test_another_model_is_shown_and_its_distance_told(
    monkeypatch: pytest.MonkeyPatch, kind: type[Weights], base: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(streamed_module, "_STAGING_ELEMENTS", 700)
    model = make_model(MODEL)
    other = {name: tensor + 0.25 for name, tensor in model.items()}
    weights = kind(views_on_device(3, 2, dtype), lambda view: read_from(model, view), 1, bf16_base=base)
    weights.update(np.array([3], np.uint64), np.array([0.5], np.float32))
    digest = weights.digest()
    weights.restore()
    before = {name: tensor.clone() for name, tensor in live_of(weights).items()}
    weights.show(lambda view: read_from(other, view))
    expected = Weights(sharded_views(other, 1, 1, dtype), lambda view: read_from(other, view), 1, bf16_base=base)
    assert same(live_of(weights), live_of(expected))
    reference = whole_weights(model, dtype)
    reference.update(np.array([3], np.uint64), np.array([0.5], np.float32))
    squares = [(theta - read_from(other, view)).double().square().sum() for view, theta in reference.theta()]
    assert weights.squared_distance(lambda view: read_from(other, view)) == pytest.approx(float(sum(squares)))
    parts = [weights.squared_distance(lambda view: read_from(other, view), {i}) for i in range(len(weights.views))]
    assert sum(parts) == pytest.approx(float(sum(squares)))
    assert weights.digest() == digest
    weights.restore()
    assert same(live_of(weights), before)


@pytest.mark.parametrize(("kind", "base"), [(DeviceWeights, False), (StreamedWeights, False), (StreamedWeights, True)])
def test_weights_that_were_loaded_are_those_of_a_start_with_them(
    monkeypatch: pytest.MonkeyPatch, kind: type[Weights], base: bool
) -> None:
    """As from a snapshot, when a run is resumed: nothing of what was there before is left in any copy."""
    monkeypatch.setattr(streamed_module, "_STAGING_ELEMENTS", 700)
    model, other = make_model(MODEL), make_model(MODEL, seed=1)
    weights = kind(views_on_device(3, 2, torch.float32), lambda view: read_from(model, view), 1, bf16_base=base)
    weights.perturb(3, 0.5)
    weights.load(lambda view: read_from(other, view))
    fresh = Weights(sharded_views(other, 1, 1, torch.float32), lambda view: read_from(other, view), 1, bf16_base=base)
    weights.restore()
    assert same(live_of(weights), live_of(fresh))
    assert_same_history(weights, fresh)


COMPILE = """
import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from esmpi.noise import gpu, low_rank_gpu
table = {"lines": "*i64", "which": "*i32"}
update = table | {"normals": "*i32", "seeds": "*i64", "coefficients": "*fp32", "num_members": "i32"}
perturb = table | {"normals": "*i32", "seeds": "*i64", "scales": "*fp32"}
perturb |= {"theta_bf16": "constexpr", "live_kind": "constexpr"}
fill = {"out": "*fp32", "seeds": "*i64", "normals": "*i32", "key": "i64", "first": "i64", "stride": "i64"}
fill |= {"rows": "i32", "cols": "i32", "chunks": "i32"}
product = {"total": "*fp32", "b": "*fp32", "b_row_stride": "i32", "b_stride": "i32", "a": "*fp32"}
product |= {"rows": "i32", "columns": "i32", "terms": "i32"}
moved = {"live": "*i16", "live_stride": "i32", "theta": "*fp32", "theta_stride": "i32", "b": "*fp32", "a": "*fp32"}
moved |= {"rows": "i32", "columns": "i32", "rank": "i32", "scales": "*fp32", "factor": "fp32", "kind": "constexpr"}
disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
for kernel, signature, constants in (
    (gpu._perturb, perturb, {"theta_bf16": False, "live_kind": 1}),
    (gpu._update, update, {}),
    (gpu._digest, table | {"shares": "*i64"}, {}),
    (low_rank_gpu._fill, fill, {}),
    (low_rank_gpu._perturb, moved, {"kind": 1}),
    (low_rank_gpu._add_product, product, {}),
):
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    made = triton.compile(source, target=target, options={"enable_fp_fusion": False})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        text = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=True).stdout
    instructions = re.findall(r"^ +/[*][0-9a-f]+[*]/ +(?:@!?U?P[0-9T]+ +)?([A-Z0-9_.]+)", text, re.MULTILINE)
    print(json.dumps([f"{kernel.__module__.split('.')[-1]}.{kernel.__name__}", instructions]))
"""


@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_kernels_compile_for_a_gpu_without_fused_arithmetic(capability: int) -> None:
    """Looks at what the GPU executes: some versions of ptxas fuse what PTX has as a product and a sum."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    # a lane has 8 elements of each tile: a product and a sum for each
    for name, num_products in (("gpu._perturb", 8), ("gpu._update", 8), ("gpu._digest", 0)):
        kinds = Counter(instruction.split(".")[0] for instruction in found[name])
        assert kinds["FMUL"] == num_products
        assert kinds["FADD"] + 2 * kinds["FADD2"] >= num_products
        assert not kinds.keys() & {"FFMA", "FFMA2"}
        assert not [text for text in found[name] if ".FTZ" in text and text.startswith(("FADD", "FMUL"))]
        # 8 elements of a lane; a third more would be felt
        assert 300 < len(found[name]) < 600
    kinds = {name: Counter(text.split(".")[0] for text in instructions) for name, instructions in found.items()}
    # 32 elements of each thread; the format wants the update's products fused, and no others
    assert kinds["low_rank_gpu._add_product"]["FFMA"] + 2 * kinds["low_rank_gpu._add_product"]["FFMA2"] >= 32
    assert not kinds["low_rank_gpu._add_product"].keys() & {"FMUL", "FADD"}
    assert kinds["low_rank_gpu._perturb"]["FMUL"] >= 32
    for name in ("low_rank_gpu._perturb", "low_rank_gpu._fill"):
        assert not kinds[name].keys() & {"FFMA", "FFMA2"}
