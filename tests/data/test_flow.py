"""Optical flow against shifts that are known, closed forms, and a ball that is followed through a simulated clip."""

from __future__ import annotations

import importlib.util

import cv2
import numpy as np
import pytest
import torch

from physcli.data.clips import read_dataset
from physcli.data.flow import compose_flows, dis_flow, flow_between
from physcli.data.raft import flow_at_raft_size, raft_flow, raft_identity
from physcli.errors import MissingExtra
from physcli.simulation.flow import pinhole, rigid_flow
from physcli.simulation.types import Camera

DOWN, RIGHT = np.mgrid[:24, :32].astype(np.float32)


@pytest.mark.parametrize("step", [(3, 0), (0, 3), (-2, 1)])
def test_dis_finds_a_shift_right_and_down(step):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    pattern = cv2.GaussianBlur(noise, (0, 0), 2)
    pattern = ((pattern - pattern.min()) * (255 / np.ptp(pattern))).astype(np.uint8)
    right, down = step
    frames = np.stack([np.roll(pattern, (number * down, number * right), (0, 1)) for number in range(3)])
    flow = dis_flow(frames)
    assert (flow.shape, flow.dtype) == ((2, 48, 64, 2), np.float32)
    inside = flow[:, 10:-10, 10:-10]
    np.testing.assert_allclose(np.median(inside, (1, 2)), [step, step], atol=0.05)
    assert (np.abs(inside - step).max(-1) < 0.25).mean() > 0.95


@pytest.mark.parametrize("estimate", [dis_flow, raft_flow])
@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 16, 16, 3), np.float32),
        np.zeros((2, 16, 16, 1), np.uint8),
        np.zeros((2, 16, 16), np.uint8),
        np.zeros((1, 16, 16, 3), np.uint8),
    ],
)
def test_what_are_no_frames_is_refused(frames, estimate):
    with pytest.raises(ValueError, match=r"frames must be uint8 \[T ≥ 2, H, W, 3\], got (float32|uint8) \["):
        estimate(frames)


def test_dis_refuses_small_frames():
    with pytest.raises(ValueError, match=r"at least 16 pixels a side, got \[20, 15\]"):
        dis_flow(np.zeros((2, 20, 15, 3), np.uint8))


@pytest.mark.parametrize(
    ("size", "seen"),
    [((480, 720), (480, 720)), ((64, 64), (128, 128)), ((60, 90), (128, 192)), ((131, 250), (136, 256))],
)
def test_flow_at_rafts_size_comes_back_in_the_frames_own_pixels(size, seen):
    """An affine field is the same field at every size, its places and its arrows scaled; resizing keeps it exactly."""
    slope, shift = torch.tensor([[0.02, -0.03], [0.05, 0.01]]), torch.tensor([1.5, -0.5])
    asked = []

    def field(height, width):
        """u(x) = A x + b where x is the place of a pixel's centre, in pixels of the frames' own size."""
        down, right = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        places = torch.stack([right * size[1] / width, down * size[0] / height], -1)
        return places @ slope.T + shift

    def estimate(now, later):
        """Stands in for the network, for geometry alone: the field in pixels of what it is shown."""
        asked.append((now, later))
        height, width = now.shape[2:]
        arrows = field(height, width) * torch.tensor([width / size[1], height / size[0]])
        return arrows.permute(2, 0, 1).expand(len(now), 2, height, width)

    frames = np.full((6, *size, 3), np.arange(0, 256, 51)[:, None, None, None], np.uint8)
    flow = flow_at_raft_size(estimate, frames)
    assert (flow.shape, flow.dtype) == ((5, *size, 2), np.float32)
    inside = (slice(None), slice(4, -4), slice(4, -4))  # beyond the border there is nothing to go by
    np.testing.assert_allclose(flow[inside], field(*size)[None].expand(5, *size, 2)[inside], atol=1e-3)
    shown = [torch.cat(part)[:, :, 0, 0] for part in zip(*asked, strict=True)]
    for pictures, first in zip(shown, (0, 1), strict=True):  # every pair once, in order, scaled to [−1, 1]
        expected = torch.linspace(-1, 1, 6)[first : first + 5, None].expand(5, 3)
        torch.testing.assert_close(pictures, expected, rtol=0, atol=1e-6)
    assert {tuple(pictures.shape[2:]) for pair in asked for pictures in pair} == {seen}


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is here")
@pytest.mark.parametrize("call", [lambda: raft_flow(np.zeros((2, 16, 16, 3), np.uint8)), raft_identity])
def test_raft_without_torchvision(call):
    with pytest.raises(MissingExtra, match="RAFT needs the package 'torchvision'") as error:
        call()
    assert "pip install 'physcli[raft]', or use objective.flow=dis" in error.value.fix


def test_constant_flows_add_up():
    steps = [(1.5, 0.0), (-0.25, 2.0), (40.0, -60.0), (3.0, 1.0)]  # also far beyond the border
    whole = compose_flows([np.broadcast_to(np.float16(step), (24, 32, 2)) for step in steps])
    assert (whole.shape, whole.dtype) == ((24, 32, 2), np.float32)
    np.testing.assert_array_equal(whole, np.broadcast_to(np.sum(steps, 0, dtype=np.float32), whole.shape))


def test_linear_flows_are_followed():
    """With u(x) = A x + b each field, a point goes from x to (I + A) x + b: known after any number of fields."""
    slopes = [np.array([[0.0, 0.05], [-0.04, 0.02]]), np.array([[0.03, 0.0], [0.05, -0.02]]), np.eye(2) * 0.04]
    places = np.stack([RIGHT, DOWN], -1).astype(np.float64)
    fields = [(places - (16, 12)) @ slope.T + (0.3, -0.2) for slope in slopes]
    expected = places.copy()
    for slope in slopes:
        expected += (expected - (16, 12)) @ slope.T + (0.3, -0.2)
    inside = (slice(6, -6), slice(6, -6))
    got = compose_flows(fields)[inside]
    # OpenCV looks fields up at every 1/32 of a pixel.
    np.testing.assert_allclose(got, (expected - places)[inside], atol=2 * 0.05 / 32)
    assert np.abs(got - sum(fields)[inside]).max() > 0.05  # which adding without following misses


def test_a_point_that_left_goes_on_as_the_border_does():
    left = np.full((24, 32, 2), (100, 0))
    rows = np.stack([RIGHT, DOWN], -1)
    np.testing.assert_array_equal(compose_flows([left, rows]), np.stack([np.full_like(DOWN, 131), DOWN], -1))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [((0, 1, 2, 3), (0, 1, 2)), ((2, 5, 8), (2 + 3 + 4, 5 + 6 + 7)), ((0, 1, 4), (0, 1 + 2 + 3)), ((3, 12), (63,))],
)
def test_flow_between_chosen_frames(frames, expected):
    """Field t is t everywhere."""
    flow = np.arange(12, dtype=np.float16)[:, None, None, None] * np.array([1, -1], np.float16) * np.ones((24, 32, 1))
    got = flow_between(flow, frames)
    assert (got.shape, got.dtype) == ((len(expected), 24, 32, 2), np.float32)
    np.testing.assert_array_equal(got[..., 0], np.broadcast_to(np.reshape(expected, (-1, 1, 1)), got.shape[:3]))
    np.testing.assert_array_equal(got[..., 1], -got[..., 0])


@pytest.mark.parametrize("frames", [(), (3,), (3, 3), (5, 3), (-1, 2), (8, 13)])
def test_flow_between_refuses_other_frames(frames):
    with pytest.raises(ValueError, match=r"at least two increasing frames of 0\.\.12, got \["):
        flow_between(np.zeros((12, 24, 32, 2)), frames)


def rotation(quaternion):
    w, x, y, z = np.asarray(quaternion, np.float64)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


@pytest.mark.parametrize("frames", [(2, 3), (3, 6)])
def test_exact_flow_follows_a_ball(simulated, frames):
    """A ball's surface is where a pixel's ray meets a sphere; its poses say where that point is later."""
    followed = 0
    for clip in read_dataset(simulated).clips:
        thing = clip.record["things"][0]
        if thing["shape"] != "sphere":
            continue
        with np.load(clip.arrays) as arrays:
            centres, turns = arrays["positions"][:, 0].astype(np.float64), arrays["quaternions"][:, 0]
            seen = arrays["segmentation"][frames[0]] == 1
            got = flow_between(arrays["flow"], frames)[0][seen]
        camera = pinhole(Camera(**clip.record["camera"]), 64, 64)
        rays, start, radius = camera.rays()[:, :, 0][seen], camera.origin - centres[frames[0]], thing["size"][0]
        a, b, c = (rays**2).sum(1), rays @ start, start @ start - radius**2
        inside = (b**2 - a * c) / (a * radius**2)  # 1 in the middle of the ball, 0 at its rim
        central = inside > 0.5
        depth = (-b - np.sqrt(np.maximum(b**2 - a * c, 0))) / a
        points = (camera.origin + depth[:, None] * rays)[central]
        before, after = (
            (np.broadcast_to(rotation(turns[f]), (len(points), 3, 3)), np.broadcast_to(centres[f], points.shape))
            for f in frames
        )
        error = np.abs(got[central] - rigid_flow(camera, points, before, after)).max(1)
        # From one frame to the next as stored; over three, a point may near the rim, where flow is no longer smooth.
        assert error.max() < 0.01 if frames[1] - frames[0] == 1 else np.median(error) < 0.05
        followed += len(points)
    assert followed > 200
