"""Predicting what comes next: the targets by hand, the loss by its definition."""

from __future__ import annotations

import pytest
import torch

from physcli.methods.future_prediction import FutureHead, color_cells, future_changes, future_loss


def test_color_cells_are_means_in_reading_order():
    frames = torch.rand(2, 3, 3, 8, 12)
    cells = color_cells(frames, (2, 3), 2)  # places of 4×4 pixels, cells of 2×2
    assert cells.shape == (2, 3, 6, 12)
    for row in range(2):
        for column in range(3):
            place = frames[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            for i in range(2):
                for j in range(2):
                    mean = place[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((-1, -2))  # [B, T, 3]
                    k = 3 * (2 * i + j)
                    torch.testing.assert_close(cells[:, :, 3 * row + column, k : k + 3], mean)


def test_changes_of_one_moving_square():
    seen = torch.zeros(1, 3, 8, 8)
    future = torch.zeros(1, 2, 3, 8, 8)
    seen[:, 0, :4, :4] = 1.0  # a red square in the first of four places …
    future[:, 0] = seen
    future[:, 1, 0, 4:, 4:] = 1.0  # … is in the last one at the second horizon
    changes, ever = future_changes(seen, future, grid=(2, 2), cells=1)
    assert changes.shape == (1, 4, 2, 3)
    expected = torch.zeros(1, 4, 2, 3)
    expected[0, 0, 1, 0], expected[0, 3, 1, 0] = -1.0, 1.0
    torch.testing.assert_close(changes, expected)
    assert ever.tolist() == [[1, 0, 0, 1]]


def test_loss_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    clips, places, horizons, size = 2, 3, 2, 3
    changes = 0.05 * torch.randn(clips, places, horizons, size, generator=generator)
    ever = torch.rand(clips, places, generator=generator)
    guess = torch.randn(clips, places, horizons, size, generator=generator)
    guess_ever = torch.randn(clips, places, generator=generator)
    loss, logs = future_loss((guess, guess_ever), changes, ever, scale=5, threshold=0.05, moving_weight=7)
    for b in range(clips):
        weighted = weights = moving_error = moving_size = moving = 0.0
        for n in range(places):
            for k in range(horizons):
                error = ((guess[b, n, k] - 5 * changes[b, n, k]) ** 2).mean().item()
                moves = changes[b, n, k].abs().max() > 0.05
                weight = 7 if moves else 1
                weighted, weights = weighted + weight * error, weights + weight
                if moves:
                    moving += 1
                    moving_error += error
                    moving_size += ((5 * changes[b, n, k]) ** 2).mean().item()
        rest = ((guess_ever[b] - 5 * ever[b]) ** 2).mean().item()
        assert 0 < moving < places * horizons
        assert loss[b].item() == pytest.approx(weighted / weights + rest, rel=1e-5)
        assert logs["explained"][b].item() == pytest.approx(1 - moving_error / moving_size, rel=1e-4)
        assert logs["moving"][b].item() == pytest.approx(moving / (places * horizons))


def test_explained_is_one_for_perfection_and_zero_for_nothing():
    changes = 0.2 * torch.randn(4, 6, 3, 12, generator=torch.Generator().manual_seed(0))
    ever = changes.abs().amax(dim=(2, 3))
    loss, logs = future_loss((5 * changes, 5 * ever), changes, ever)
    assert loss.abs().max() < 1e-10
    assert logs["explained"].tolist() == pytest.approx([1] * 4)
    logs = future_loss((torch.zeros_like(changes), ever), changes, ever)[1]
    assert logs["explained"].tolist() == pytest.approx([0] * 4, abs=1e-6)
    still = torch.zeros_like(changes)
    assert future_loss((changes, ever), still, ever)[1]["explained"].tolist() == [0] * 4  # nothing to explain


def test_head_is_linear_with_the_last_output_apart():
    head = FutureHead(8, [2, 4, 8], cells=2)
    tokens = torch.randn(2, 5, 8)
    changes, ever = head(tokens)
    assert changes.shape == (2, 5, 3, 12)
    whole = head.linear(tokens)
    torch.testing.assert_close(changes.flatten(2), whole[..., :-1])
    torch.testing.assert_close(ever, whole[..., -1])
