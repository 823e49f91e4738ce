"""Compiled blocks compute what eager ones do, share their graphs, and give way if the compiler fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast

from mae_transfer.core.normalize import Statistics
from mae_transfer.data.crops import Look, apply_looks, to_looks
from mae_transfer.data.transforms import shift_hue
from mae_transfer.engine.dist import Dist, assemble, compile_blocks, compiled, compiles
from mae_transfer.engine.state import LoopConfig, RunConfig, TrainState, check_precision
from mae_transfer.interfaces import Mask
from mae_transfer.models import attention
from mae_transfer.models.attention import TableBias, attend_flex, decomposed_bias, set_position_bias
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import DropPath, ViT, ViTConfig
from mae_transfer.tasks.backbones import flops_of
from mae_transfer.tasks.evaluation import attention_figures

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own compiler reads it
CPU, CUDA = Dist(torch.device("cpu")), Dist(torch.device("cuda", 0))
SMALL: dict[str, Any] = {"size": None, "dim": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32}
VARIANTS = [
    {"qkv_bias": "qv", "relative_positions": "shared", "layer_scale": 0.1},
    {"windows": 3, "global_blocks": (1,), "relative_positions": "decomposed", "class_token": False},
]


LOOKS = [
    Look((0, 0, 9, 9), True, [(shift_hue, 0.1), (adjust_contrast, 0.6)], False, 1.5, False),
    Look((0, 0, 9, 9), False, [(adjust_brightness, 1.3), (shift_hue, -0.05)], True, 0.0, True),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Compile with another backend than torch's default, which needs a C++ compiler and many seconds."""
    find = torch._dynamo.lookup_backend
    return lambda wanted: monkeypatch.setattr(
        torch._dynamo, "lookup_backend", lambda _: find(wanted) if isinstance(wanted, str) else wanted
    )


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor]:
    """Return the loss and the gradients of a model."""
    model.zero_grad()
    value = loss()
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def mae_of(kind: torch.dtype) -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = MAE(MAEConfig(encoder=ViTConfig(**SMALL), decoder=DecoderConfig(depth=1, dim=24, heads=2)), 12).to(kind)
    order, images = torch.rand(2, 16).argsort(dim=1), torch.randn(2, 3, 32, 32, dtype=kind)
    return model, lambda: model(images, Mask(order[:, :4], order[:, 4:])).square().mean()


def vit_of(kind: torch.dtype, **options: Any) -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model, images = ViT(ViTConfig(**SMALL | options)).to(kind), torch.randn(2, 3, 32, 32, dtype=kind)
    return model, lambda: model(images, taps=(0, model.depth - 1)).maps[-1].square().mean()


def assert_compiled_equals_eager(model: nn.Module, loss: Callable[[], Tensor], kind: torch.dtype) -> None:
    eager = gradients(model, loss)
    names = list(model.state_dict())
    compile_blocks(model)
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        for one, other in zip(gradients(model, loss), eager, strict=True):
            torch.testing.assert_close(one, other, **({"rtol": 1e-9, "atol": 1e-12} if kind == torch.float64 else {}))
    assert counters["stats"]["unique_graphs"] > 0
    assert list(model.state_dict()) == names


def channels_of(kind: torch.dtype) -> tuple[nn.Module, Callable[[], Tensor]]:
    model, loss = vit_of(kind, **VARIANTS[1])
    set_position_bias(model, "channels", device=CPU.device, compiled=True)
    return model, loss


def skipping_of(kind: torch.dtype) -> tuple[nn.Module, Callable[[], Tensor]]:
    model, loss = vit_of(kind, depth=3, drop_path=0.6, skip_dropped=True)
    return model, lambda: (torch.manual_seed(1), loss())[1]


@pytest.mark.parametrize(
    "make", [mae_of, channels_of, skipping_of, *(partial(vit_of, **options) for options in VARIANTS)]
)
def test_compiled_blocks_compute_what_eager_ones_do(make: Any, backend: Any) -> None:
    backend("aot_eager")
    assert_compiled_equals_eager(*make(torch.float64), torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_code_of_the_real_compiler_computes_it_too(kind: torch.dtype) -> None:
    assert_compiled_equals_eager(*mae_of(kind), kind)


@pytest.mark.parametrize(("options", "given"), [
    ({"relative_positions": "decomposed", "windows": 4, "global_blocks": (1,), "class_token": False}, None),
    ({"relative_positions": "shared", "windows": 4, "global_blocks": (1,), "class_token": False}, None),
    ({"relative_positions": "per_block"}, 80),
])  # fmt: skip
@pytest.mark.usefixtures("flex_with_gradients")
def test_flex_attention_is_the_bias_and_no_tensor_has_its_size(
    options: dict[str, Any], given: int | None, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With padded windows, or a class token and `given` patches of each image."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"dim": 32, "image_size": (80, 72)}
    model = ViT(ViTConfig(**SMALL | size | options)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    set_position_bias(model, "flex", device=CUDA.device, compiled=True)
    images, grid, sizes = torch.randn(2, 3, 80, 72, dtype=torch.float64), (10, 9), []
    ids = torch.rand(2, 90).argsort(dim=1)[:, :given] if given else None

    def loss() -> Tensor:
        return model.encode(model.place(model.patch_embed(images, ids), grid, ids), grid, ids)[-1].square().mean()

    def look(graph: torch.fx.GraphModule, _: list[Any]) -> Any:
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        sizes.extend(value.numel() for value in values if isinstance(value, Tensor))
        return graph.forward

    eager = gradients(model, loss)
    backend(look)
    compile_blocks(model)
    monkeypatch.setattr(attention, "attend", None)  # calling it fails
    for one, other in zip(gradients(model, loss), eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert max(sizes) < 2 * 2 * (given or 90) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("leading", [0, 1, None])
@torch.no_grad()
def test_flex_attention_by_the_real_compiler_is_the_bias(leading: int | None) -> None:
    """On a CPU it has no backward pass. leading None: decomposed positions."""
    torch.manual_seed(0)
    ids = torch.rand(2, 35).argsort(dim=1)[:, :21]
    tokens = 35 if leading is None else 21 + leading
    q, k, v = torch.randn(3, 2, 3, tokens, 16)
    tables = torch.randn(9, 16), torch.randn(13, 16), torch.randn(9 * 13 + 3, 3)

    def attended(attend: Callable[..., Tensor]) -> Tensor:
        table = TableBias(tables[2], (5, 7), ids, leading or 0)
        return attend(q, k, v, decomposed_bias(q, *tables[:2], (5, 7)) if leading is None else table)

    found = torch.compile(attended)(attend_flex)
    torch.testing.assert_close(found, attended(lambda q, k, v, bias: attention.attend(q, k, v, bias.tensor())))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_all_depths_and_rates_of_drop_path_share_their_graphs(
    recompute: bool, skip: bool, compiler: str, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend(compiler)
    model, loss = vit_of(torch.float32, depth=12, drop_path=0.3, skip_dropped=skip)
    model.set_grad_checkpointing(recompute)
    compile_blocks(model)
    gradients(model.train(), loss)
    # no drop path; all rates, or two numbers of samples that are not skipped
    assert counters["stats"]["unique_graphs"] == (3 if skip else 2)
    assert not counters["graph_break"]
    assert "the compiler failed" not in caplog.text


def test_ddp_does_not_split_the_graph_of_a_block(backend: Any, tmp_path: Path) -> None:
    """Its first gradient bucket has 1 MiB, and a block here has 3."""
    sizes: list[int] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        sizes.append(len(inputs))
        return graph.forward

    backend(look)
    model, _ = vit_of(torch.float32, dim=256, depth=2)
    compile_blocks(model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        features = DistributedDataParallel(model)(torch.randn(2, 3, 32, 32))
        features.maps[-1].square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(sizes) == 1


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_every_size_of_a_compiled_training_step_is_static(kind: Any, recompute: bool, backend: Any) -> None:
    """Encoder and decoder have different lengths, and another batch follows."""
    sizes: list[int | torch.SymInt] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        sizes.extend(size for one in inputs for size in (one.shape if isinstance(one, Tensor) else [one]))
        return graph.forward

    backend(look)
    encoder = ViTConfig(**SMALL | {"drop_path": 0.3, "depth": 3})
    model = MAE(MAEConfig(encoder=encoder, decoder=DecoderConfig(depth=2, dim=24, heads=2, kind=kind)), 12)
    model.set_grad_checkpointing(recompute)
    compile_blocks(model)
    for batch in (3, 3, 5):
        order, images = torch.rand(batch, 16).argsort(dim=1), torch.randn(batch, 3, 32, 32)
        model(images, Mask(order[:, :4], order[:, 4:])).square().mean().backward()
    assert {type(size) for size in sizes} == {int}


def test_compiled_drop_path_drops_samples_at_its_rate(backend: Any) -> None:
    drop = DropPath(0.25).train()
    torch.manual_seed(0)
    dropped = torch.compile(drop, backend="eager")(torch.ones(4000, 2, 3))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert (dropped[:, :1, :1] == dropped).all()
    assert dropped[:, 0, 0].mean().item() == pytest.approx(1.0, abs=0.03)  # 3 standard errors are 0.027
    assert torch.equal(torch.compile(drop.eval(), backend="eager")(torch.ones(5, 2)), torch.ones(5, 2))


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no such machine")


@pytest.mark.parametrize("broken", [fails, aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=fails)])
def test_a_failing_compiler_is_named_once_and_the_model_runs_eagerly(
    broken: Any, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend(broken)
    model, loss = mae_of(torch.float32)
    eager = gradients(model, loss)
    compile_blocks(model)
    with caplog.at_level(logging.WARNING, logger="mae_transfer"):
        for _ in range(2):
            assert all(map(torch.equal, gradients(model, loss), eager))
    [message] = [record.message for record in caplog.records if record.name == "mae_transfer.engine.dist"]
    assert message.startswith("run.compile: the model runs eagerly because the compiler failed")
    assert "no such machine" in message


def test_where_torch_does_not_compile_everything_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(nn.Module, "compile", fails)
    model, loss = mae_of(torch.float32)
    eager = gradients(model, loss)
    with caplog.at_level(logging.WARNING, logger="mae_transfer"):
        compile_blocks(model)
        assert compiled(fails) is fails
    assert all(map(torch.equal, gradients(model, loss), eager))
    assert caplog.text.count("runs eagerly because the compiler failed: RuntimeError: no such machine") == 2


def test_an_error_of_the_model_itself_is_not_taken_for_one_of_the_compiler(backend: Any) -> None:
    backend("eager")
    model, _ = vit_of(torch.float32)
    compile_blocks(model)
    with pytest.raises(ValueError, match="cannot be cut into patches"):
        model(torch.zeros(1, 3, 33, 32))


def test_a_model_without_blocks_is_compiled_as_a_whole(backend: Any) -> None:
    backend("eager")
    model = assemble(nn.Linear(2, 2), dist=CPU, compile=True)
    model(torch.zeros(1, 2))
    assert counters["stats"]["unique_graphs"] == 1


def test_compilation_is_the_default_on_cuda_and_includes_averaged_weights(backend: Any) -> None:
    backend("eager")
    assert [compiles(wanted, dist) for dist in (CPU, CUDA) for wanted in (None, True, False)] == [
        False, True, False, True, True, False,
    ]  # fmt: skip
    for run in (RunConfig(), RunConfig(compile=True)):
        model, _ = vit_of(torch.float32)
        cfg = LoopConfig(steps=1, steps_per_epoch=1, global_batch=1, ema_decay=0.9, run=run)
        state = TrainState.create(model, torch.optim.SGD(model.parameters(), lr=0.1), cfg, dist=CPU)
        assert state.averaged is not None
        compiled = [part for part in state.averaged.modules() if part._compiled_call_impl is not None]
        assert len(compiled) == (SMALL["depth"] if run.compile else 0)


def test_recomputed_activations_are_not_counted_and_stay_recomputed() -> None:
    model, _ = vit_of(torch.float32)
    kept = flops_of(MapOf(model), 32, backward=True)
    model.set_grad_checkpointing(True)
    assert flops_of(MapOf(model), 32, backward=True) == kept
    assert model.checkpointing is True


def test_who_counts_operations_or_records_attention_sees_all_of_them(backend: Any) -> None:
    backend("eager")
    model, _ = vit_of(torch.float32)
    images, statistics = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), Statistics((0.5,) * 3, (0.5,) * 3)

    def seen() -> tuple[int, dict[str, float]]:
        return flops_of(MapOf(model), 32, backward=True), attention_figures(model, [images], statistics, CPU)

    eager = seen()
    compile_blocks(model)
    assert seen() == eager
    assert not counters["stats"]
    assert all(block._compiled_call_impl is not None for block in model.blocks)


class MapOf(nn.Module):
    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.vit(images).maps[-1]
        return found


def test_a_gpu_without_bfloat16_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Tesla V100")
    for supported in (True, False):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda _, supported=supported: supported)
        check_precision("float16", CUDA.device)
        check_precision("bfloat16", CPU.device)
        if supported:
            check_precision("bfloat16", CUDA.device)
            continue
        with pytest.raises(ValueError, match=r"Tesla V100 has no bfloat16: set precision='float16' or 'float32'"):
            check_precision("bfloat16", CUDA.device)


@pytest.mark.parametrize("kind", ["aot_eager", fails, pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_colours_are_the_eager_ones_in_one_graph_for_each_size(
    kind: Any, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend(kind)
    apply, looks = compiled(apply_looks), to_looks(LOOKS, reach=5)
    for side in (16, 8):
        views = torch.randint(0, 256, (2, 1, 3, side, side), dtype=torch.uint8)
        gap = apply(views, looks).int() - apply_looks(views, looks).int()
        assert gap.abs().max() <= 1
        assert gap.abs().float().mean() < 1e-2
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert ("runs eagerly because the compiler failed" in caplog.text) == (kind is fails)
