"""Targets against independent code: scikit-learn's PCA, pixel loops for HOG, patch loops for colours and losses."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import decomposition

from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.core.patches import patchify, take
from mae_transfer.core.pca import Basis, fit_basis
from mae_transfer.interfaces import Batch
from mae_transfer.targets import PCA, Frame, HOGConfig, MeanColourConfig, PCAConfig
from mae_transfer.targets.hog import gradients, histograms


def images(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth random images: their patches have strong components."""
    torch.manual_seed(0)
    coarse = torch.rand(count, 3, height // 4, width // 4)
    return (F.interpolate(coarse, size=(height, width), mode="bicubic") * 255).clamp(0, 255).to(torch.uint8)


def batch(data: torch.Tensor) -> Batch:
    return Batch(data, (), None, None, torch.arange(len(data)))


def basis(data: torch.Tensor, patch: int, components: int) -> Basis:
    parts = patchify(normalize(data), patch).flatten(0, 1).split(50)
    return fit_basis(parts, components, patch=patch, statistics=IMAGENET)


def test_pca_is_scikit_learns() -> None:
    data = images(40, 16, 24)
    values = patchify(normalize(data), 4).flatten(0, 1).numpy()
    expected = decomposition.PCA(n_components=7, svd_solver="full").fit(values)
    found = basis(data, 4, 7)
    np.testing.assert_allclose(found.mean, expected.mean_, atol=1e-5)
    np.testing.assert_allclose(found.variance, expected.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(found.explained, expected.explained_variance_ratio_, rtol=1e-4)
    signs = np.sign((found.components.numpy() * expected.components_).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.components.numpy() * signs, expected.components_, atol=2e-4)

    ids = torch.tensor([[0, 7, 23], [5, 5, 1]])
    target = PCA(Frame(4, (4, 6), IMAGENET), found, PCAConfig(basis="given"))
    coefficients = target(batch(data[:2]), ids)
    mine = np.stack(
        [[expected.transform(values.reshape(40, 24, 48)[b, n][None])[0] for n in row] for b, row in enumerate(ids)]
    )
    np.testing.assert_allclose(coefficients.numpy() * signs[:, 0], mine, atol=2e-4)
    whitened = PCA(Frame(4, (4, 6), IMAGENET), found, PCAConfig(basis="given", whiten=True))(batch(data[:2]), ids)
    np.testing.assert_allclose(whitened * found.variance.sqrt(), coefficients, atol=1e-4)


@pytest.mark.parametrize("whiten", [False, True])
def test_all_components_draw_the_image_and_few_draw_scikit_learns_reconstruction(whiten: bool) -> None:
    data, ids = images(40, 16, 24), torch.arange(24)[None].repeat(40, 1)
    frame = Frame(4, (4, 6), IMAGENET)
    whole = PCA(frame, basis(data, 4, 48), PCAConfig(basis="given", whiten=whiten))
    torch.testing.assert_close(whole.decode(whole(batch(data), ids), batch(data), ids), data / 255, atol=2e-4, rtol=0)
    few = PCA(frame, basis(data, 4, 5), PCAConfig(basis="given", whiten=whiten))
    values = patchify(normalize(data), 4).flatten(0, 1).numpy()
    expected = decomposition.PCA(n_components=5, svd_solver="full").fit(values)
    rebuilt = expected.inverse_transform(expected.transform(values)).reshape(40, 24, 48)
    np.testing.assert_allclose(few.denorm(few(batch(data), ids), batch(data), ids), rebuilt, atol=5e-4)


def test_a_basis_of_another_patch_or_too_few_patches_is_an_error_with_the_remedy() -> None:
    found = basis(images(4, 16, 16), 4, 3)
    with pytest.raises(ValueError, match=r"patches of 4 px .* encoder has 8 px .*tools/tokenizer_train.py pca"):
        PCA(Frame(8, (2, 2), IMAGENET), found, PCAConfig(basis="given"))
    with pytest.raises(ValueError, match="60 components cannot be fitted to 4 patches of 48 values"):
        fit_basis([torch.zeros(4, 48)], 60, patch=4, statistics=IMAGENET)


def slow_hog(image: np.ndarray, bins: int, cell: int) -> np.ndarray:
    """MaskFeat's histograms of one channel (H, W), pixel by pixel: (H / c, W / c, O)."""
    height, width = image.shape
    padded = np.pad(image.astype(np.float64), 1, mode="reflect")
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    out = np.zeros((height // cell, width // cell, bins))
    for i in range(height):
        for j in range(width):
            window = padded[i : i + 3, j : j + 3]
            x, y = (window * sobel).sum(), (window * sobel.T).sum()
            out[i // cell, j // cell, math.floor(math.atan2(x, y) / math.pi * bins) % bins] += math.hypot(x, y)
    return out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-12)


@pytest.mark.parametrize(("bins", "cell"), [(9, 8), (6, 4)])
def test_hog_equals_a_loop_over_pixels(bins: int, cell: int) -> None:
    data = images(2, 16, 24)
    found = histograms(data, bins=bins, cell=cell).view(2, 3, bins, 16 // cell, 24 // cell)
    for b in range(2):
        for c in range(3):
            np.testing.assert_allclose(
                found[b, c].permute(1, 2, 0), slow_hog(data[b, c].numpy(), bins, cell), atol=1e-5
            )
    np.testing.assert_allclose(
        histograms(normalize(data), bins=bins, cell=cell), found.flatten(1, 2), atol=1e-4
    )  # no shift and scale matters


def test_maskfeats_loss_is_the_mean_squared_error_of_the_hidden_patches_histograms() -> None:
    """MaskFeat (arXiv 2112.09133, section 3): l2 between predicted and true HOG, over masked patches only."""
    data, ids = images(2, 16, 16), torch.tensor([[3, 0], [1, 2]])
    target = HOGConfig(cell=4).build(Frame(8, (2, 2), IMAGENET))
    prediction = torch.randn(2, 2, target.dim)
    loss = target.loss(prediction, target(batch(data), ids)).mean()
    total, count = 0.0, 0
    for b in range(2):
        cells = [slow_hog(data[b, c].numpy(), 9, 4) for c in range(3)]
        for m in range(2):
            row, column = divmod(int(ids[b, m]), 2)
            values = [cells[c][2 * row + i, 2 * column + j] for i in range(2) for j in range(2) for c in range(3)]
            total += ((prediction[b, m].double().numpy() - np.concatenate(values)) ** 2).sum()
            count += target.dim
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_hogs_gradients_are_the_sobel_filters_of_torch() -> None:
    data = images(2, 8, 12).float()
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    padded = F.pad(data, (1, 1, 1, 1), mode="reflect")
    for found, weight in zip(gradients(data), (kernel, kernel.T), strict=True):
        torch.testing.assert_close(found, F.conv2d(padded, weight.expand(3, 1, 3, 3), groups=3))


def test_hog_gathers_the_cells_of_its_patches_and_draws_edges_along_themselves() -> None:
    stripes = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    stripes[..., 4::8] = 255  # vertical lines: gradients along x, edges along y
    target, ids = HOGConfig(cell=4).build(Frame(8, (2, 2), IMAGENET)), torch.tensor([[3, 0]])
    values = target(batch(stripes), ids)
    assert values.shape == (1, 2, target.dim)
    cells = histograms(stripes, bins=9, cell=4)
    torch.testing.assert_close(values[0, 0, :27], cells[0, :, 2, 2])
    drawn = target.decode(values, batch(stripes), ids)
    assert drawn.shape == (1, 3, 16, 16)
    assert (drawn[..., :8, 8:] == 0.5).all()  # patch 1: nothing asked for
    cell = drawn[0, 0, 8:12, 8:12]
    assert cell[:, 1:3].sum() > 3 * cell[:, [0, 3]].sum()  # bright along the middle columns, top to bottom
    with pytest.raises(ValueError, match="cells of 8 px do not divide patches of 12 px"):
        HOGConfig().build(Frame(12, (2, 2), IMAGENET))


def test_a_flat_image_has_finite_histograms() -> None:
    assert histograms(torch.full((1, 3, 16, 16), 7, dtype=torch.uint8), bins=9, cell=8).abs().max() == 0


def test_mean_colour_is_the_class_of_a_loop_over_patches() -> None:
    data, ids = images(3, 16, 16), torch.tensor([[0, 5, 15], [3, 2, 1], [9, 9, 8]])
    target = MeanColourConfig().build(Frame(4, (4, 4), IMAGENET))
    assert target.dim == 512
    found = target(batch(data), ids)
    for b in range(3):
        for m in range(3):
            row, column = divmod(int(ids[b, m]), 4)
            red, green, blue = (
                int(data[b, c, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].float().mean() // 32)
                for c in range(3)
            )
            assert found[b, m] == red * 64 + green * 8 + blue
    scores = torch.randn(3, 3, 512)
    loss = target.loss(scores, found)
    for b in range(3):
        for m in range(3):
            expected = -math.log(math.exp(scores[b, m, found[b, m]]) / scores[b, m].exp().sum())
            assert loss[b, m].item() == pytest.approx(expected, rel=1e-4)
    drawn = target.decode(F.one_hot(found, 512).float(), batch(data), ids)
    truth = take(patchify(data, 4), ids).view(3, 3, 16, 3).float().mean(dim=2) / 255
    assert (take(patchify(drawn, 4), ids).view(3, 3, 16, 3) - truth[:, :, None]).abs().max() <= 1 / 16 + 1e-2
