"""models/dvae.py against the DALL-E package on random weights, losses against formulas, and safe reading of pickles."""

import math
import os
import pickle
import zipfile
from pathlib import Path

import dall_e
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mae_transfer.checkpoints.tokenizers import export_tokenizer, load_tokenizer
from mae_transfer.interfaces import ImageTokenizer
from mae_transfer.models.dvae import DVAE, DVAEConfig, kl_to_uniform, map_pixels, reconstruction_loss, unmap_pixels

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """encoder.pkl and decoder.pkl as they are released: whole modules, pickled."""
    torch.manual_seed(0)
    parts = {
        "encoder": dall_e.Encoder(n_hid=64, vocab_size=512, n_blk_per_group=1),
        "decoder": dall_e.Decoder(n_hid=64, vocab_size=512, n_blk_per_group=1),
    }
    for name, part in parts.items():
        for parameter in part.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        torch.save(part, tmp_path / f"{name}.pkl")
    return tmp_path


@pytest.mark.parametrize("legacy", [False, True])
def test_codes_logits_and_images_are_those_of_the_package(folder: Path, legacy: bool) -> None:
    for name in ("encoder", "decoder"):
        part = torch.load(folder / f"{name}.pkl", weights_only=False)
        torch.save(part, folder / f"{name}.pkl", _use_new_zipfile_serialization=not legacy)
    theirs, back = (torch.load(folder / f"{name}.pkl", weights_only=False) for name in ("encoder", "decoder"))
    ours = load_tokenizer(f"dalle:{folder / 'encoder.pkl'}")
    assert isinstance(ours, ImageTokenizer)
    assert (ours.codes, ours.stride) == (512, 8)
    view = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    mapped = dall_e.map_pixels(view.float() / 255)
    torch.testing.assert_close(map_pixels(view), mapped)
    expected = theirs(mapped)
    torch.testing.assert_close(ours.encoder(map_pixels(view)), expected, **CLOSE)
    codes = ours(view)
    assert torch.equal(codes, expected.argmax(dim=1))
    one_hot = F.one_hot(codes, 512).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(ours.decode(codes), dall_e.unmap_pixels(torch.sigmoid(back(one_hot)[:, :3])), **CLOSE)


def test_a_plain_state_dict_is_read_too_and_without_a_decoder_codes_have_colours(folder: Path) -> None:
    (folder / "alone").mkdir()
    torch.save(
        torch.load(folder / "encoder.pkl", weights_only=False).state_dict(), folder / "alone" / "dalle_encoder.pth"
    )
    view = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    alone, whole = (
        load_tokenizer(f"dalle:{folder / 'alone' / 'dalle_encoder.pth'}"),
        load_tokenizer(f"dalle:{folder / 'encoder.pkl'}"),
    )
    assert torch.equal(alone(view), whole(view))
    drawn = alone.decode(torch.tensor([[[3, 3], [3, 7]]]))
    assert drawn.shape == (1, 3, 16, 16)
    assert torch.equal(drawn[..., :8, :8], drawn[..., :8, 8:])
    assert not torch.equal(drawn[..., :8, :8], drawn[..., 8:, 8:])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_with_foreign_classes_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for zipped in (True, False):
        torch.save({"blocks.input.w": Evil()}, tmp_path / "evil.pkl", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            ValueError, match=r"was not read, because reading it could run code: it names (posix|nt)\.mkdir"
        ):
            load_tokenizer(f"dalle:{tmp_path / 'evil.pkl'}")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="evil.pkl"):
        load_tokenizer(f"dalle:{tmp_path / 'evil.pkl'}")
    assert not (tmp_path / "ran").exists()


class Script(nn.Module):
    """Maps a file, and so creates it, while it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.mapped = path, torch.zeros(4)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state
        self.mapped = torch.from_file(self.path, True, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore:.torch.load. received")
def test_a_torchscript_archive_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    torch.jit.script(Script(str(tmp_path / "ran"))).save(str(tmp_path / "script.pkl"))
    with pytest.raises(
        ValueError, match=r"script.pkl was not read, because reading it could run code: it is a TorchScript archive"
    ):
        load_tokenizer(f"dalle:{tmp_path / 'script.pkl'}")
    assert not (tmp_path / "ran").exists()
    torch.jit.load(str(tmp_path / "script.pkl"))
    assert (tmp_path / "ran").exists()


def test_a_pickle_cannot_change_the_class_that_stands_for_modules(tmp_path: Path) -> None:
    stream = (
        b"\x80\x02cdall_e.encoder\nEncoder\nN}X\x0c\x00\x00\x00dump_patchesK\x01s\x86b."  # BUILD on the class itself
    )
    with zipfile.ZipFile(tmp_path / "set.pkl", "w") as archive:
        archive.writestr("set/data.pkl", stream)
        archive.writestr("set/version", "3\n")
    with pytest.raises(ValueError, match=r"it sets dump_patches of a class"):
        load_tokenizer(f"dalle:{tmp_path / 'set.pkl'}")


def test_what_is_no_tokenizer_is_an_error_that_says_so(tmp_path: Path, folder: Path) -> None:
    data = (folder / "encoder.pkl").read_bytes()
    (tmp_path / "cut.pkl").write_bytes(data[: len(data) // 2])
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    for reference, text in {
        f"dalle:{tmp_path / 'cut.pkl'}": "cut.pkl is damaged",
        f"dalle:{tmp_path / 'other.pth'}": "holds no encoder of DALL-E",
        f"dalle:{tmp_path / 'absent.pkl'}": "does not exist",
        str(tmp_path / "absent.safetensors"): "absent.safetensors is missing",
        "vqgan:x": "no tokenizer 'vqgan:x': give a tokenizer.safetensors, released:dalle_encoder, dalle:PATH",
        "random:512/7": "random:CODES/STRIDE",
    }.items():
        with pytest.raises(ValueError, match=text):
            load_tokenizer(reference)


def test_our_own_file_gives_the_same_codes_and_images_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dvae = DVAE(DVAEConfig(codes=16, groups=3, blocks=1, width=8, decoder_input=8, loss="mse"))
    export_tokenizer(tmp_path / "tokenizer.safetensors", dvae, about={})
    loaded = load_tokenizer(str(tmp_path / "tokenizer.safetensors"))
    view = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    assert (loaded.codes, loaded.stride) == (16, 4)
    assert loaded(view).shape == (2, 2, 3)
    assert torch.equal(loaded(view), dvae.encoder(map_pixels(view)).argmax(dim=1))
    assert loaded.decode(loaded(view)).shape == (2, 3, 8, 12)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_losses_are_their_formulas() -> None:
    """DALL-E, A.3: ln f(x) = -ln(2 b x (1 - x)) - |logit x - mu| / b; KL to the uniform distribution over P codes."""
    torch.manual_seed(0)
    pixels, out = map_pixels(torch.rand(1, 3, 2, 2)), torch.randn(1, 6, 2, 2)
    total = 0.0
    for c in range(3):
        for i in range(2):
            for j in range(2):
                x, mu, b = pixels[0, c, i, j].item(), out[0, c, i, j].item(), math.exp(out[0, c + 3, i, j].item())
                total -= math.log(math.exp(-abs(math.log(x / (1 - x)) - mu) / b) / (2 * b * x * (1 - x)))
    assert reconstruction_loss(out, pixels, "logit_laplace").item() == pytest.approx(total / 12, rel=1e-5)
    assert reconstruction_loss(out[:, :3], pixels, "mse").item() == pytest.approx(
        ((out[:, :3].sigmoid() - pixels) ** 2).mean().item()
    )
    logits = torch.randn(2, 5, 3, 3)
    q = logits.softmax(dim=1)
    assert kl_to_uniform(logits).item() == pytest.approx((q * (q * 5).log()).sum(dim=1).mean().item(), rel=1e-5)
    assert kl_to_uniform(torch.zeros(1, 7, 2, 2)).item() == pytest.approx(0, abs=1e-6)


def test_the_logit_laplace_density_integrates_to_one() -> None:
    x = torch.linspace(0.0005, 0.9995, 20000, dtype=torch.float64)
    mu, log_b = 0.3, -0.4
    out = torch.tensor([mu, mu, mu, log_b, log_b, log_b], dtype=torch.float64)[None, :, None, None]
    density = torch.stack(
        [
            (-reconstruction_loss(out.float(), value.float().expand(1, 3, 1, 1), "logit_laplace")).exp()
            for value in x[::20]
        ]
    )
    assert torch.trapezoid(density.double(), x[::20]).item() == pytest.approx(1.0, abs=5e-3)


def test_mapping_pixels_has_its_inverse() -> None:
    values = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(unmap_pixels(map_pixels(values)), values)


def test_a_cold_relaxation_chooses_codes_as_often_as_their_probability() -> None:
    """The Gumbel-max property: at a low temperature the relaxed draw is one-hot and follows softmax(logits)."""
    torch.manual_seed(0)
    dvae = DVAE(DVAEConfig(codes=4, groups=1, blocks=1, width=8, decoder_input=8))
    chosen = []
    dvae.encoder.forward = lambda pixels: torch.tensor([0.0, 1.0, 2.0, -1.0]).view(1, 4, 1, 1).expand(1, 4, 100, 200)  # type: ignore[method-assign]
    dvae.decoder.forward = lambda soft: chosen.append(soft) or soft  # type: ignore[method-assign,func-returns-value]
    dvae(torch.zeros(1, 3, 100, 200), torch.tensor(1e-3))
    shares = F.one_hot(chosen[0].argmax(dim=1), 4).float().mean(dim=(0, 1, 2))
    torch.testing.assert_close(shares, torch.tensor([0.0, 1.0, 2.0, -1.0]).softmax(dim=0), atol=0.012, rtol=0)
    assert (chosen[0].amax(dim=1) > 0.99).float().mean() > 0.98
