"""Phantom volumes as chance would have them: lesions and vessels in a body."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...data.phantom import LUNG
from .blobs import Blob
from .body import BONES, Body, random_body
from .volume import PhantomVolume, labels

INTERVALS = (0.7, 1.0, 1.25, 2.0, 2.5, 3.0, 5.0)  # mm
GAP = 4.0  # mm at least between a lesion and what else is bright
TRIES = 300  # to find a place for a blob
SHORTEST_VESSEL = 100.0  # mm


def random_volume(
    index: int,
    *,
    size: int = 256,
    slice_interval: float | None = None,
    length: float | None = None,
    lesion_size: tuple[float, float] = (5.0, 40.0),
    lesion_depth: tuple[float, float] | None = None,
    crowding: float = 1.0,
    seed: int = 0,
) -> PhantomVolume:
    """Invent a volume: 3 to 8 lesions in soft tissue, 8 to 20 vessels along the body, oblique and across it.

    Args:
        index: of the volume; each has its own anatomy.
        size: width and height of a slice in pixels.
        slice_interval: in mm; None draws one of ``INTERVALS``.
        length: from the first to the last slice in mm, about; None draws 300 to 600.
        lesion_size: shortest and longest long axis in the axial plane in mm.
        lesion_depth: smallest and largest semi-axis along z in mm; None makes it 0.7 to 1.2 of the mean radius in the
            axial plane.
        crowding: how many times as many lesions and vessels there are.
        seed: the same seed, index and arguments give the same volume.

    Raises:
        ValueError: if the body has no room for any lesion of this size.
    """
    rng = np.random.default_rng([seed, index])
    half = rng.uniform(0.6, 0.95) * 256
    pixel = round(2 * half / size, 6)
    drawn = float(rng.choice(INTERVALS)), rng.uniform(300, 600)
    interval = drawn[0] if slice_interval is None else slice_interval
    depth = max(round((drawn[1] if length is None else length) / interval) + 1, 2)
    origin = tuple(round(v, 1) for v in rng.uniform((-20, -200, -300), (20, -100, 900)).tolist())
    body = random_body(rng, half, (depth - 1) * interval)
    volume = PhantomVolume(f"volume_{index + 1:03d}", (seed, index), size, pixel, interval, depth, origin, body, (), ())
    shapes = _shapes(rng, round(crowding * int(rng.integers(3, 9))), lesion_size)
    lesions: list[Blob] = []
    for long, short in shapes:
        deep = (long + short) / 2 * rng.uniform(0.7, 1.2) if lesion_depth is None else rng.uniform(*lesion_depth)
        lesions += _random_lesion(rng, volume, long, short, deep, lesions)
    if not lesions:
        raise ValueError(
            f"Expected lesions of {lesion_size[0]:g} to {lesion_size[1]:g} mm that fit into a body of "
            f"{body.length:g} mm, got no room for any of {len(shapes)}."
        )
    count, vessels = round(crowding * int(rng.integers(8, 21))), []
    for long, short in _shapes(rng, count, lesion_size):
        if len(vessels) < count:
            vessels += _random_vessel(rng, volume, long, short, lesions)
            if vessels and len(vessels) < count and rng.random() < 0.3:
                vessels += _random_branch(rng, volume, vessels[-1], lesions)
    head_first = tuple(sorted(lesions, key=lambda lesion: lesion.z))
    return replace(volume, lesions=head_first, vessels=tuple(vessels))


def _shapes(rng: np.random.Generator, count: int, sizes: tuple[float, float]) -> list[tuple[float, float]]:
    """Long and short semi-axes in mm."""
    longs = np.exp(rng.uniform(*np.log(sizes), count)) / 2
    return list(zip(longs.tolist(), (longs * rng.uniform(0.6, 1, count)).tolist(), strict=True))


def _random_place(rng: np.random.Generator, body: Body) -> tuple[float, float, float]:
    """Any place in the outline, (x, y, z)."""
    radius, direction = math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
    z = rng.uniform(0, body.length)
    muscle = body.muscle(np.float64(z))
    return float(radius * math.cos(direction) * muscle.rx), float(radius * math.sin(direction) * muscle.ry), z


def _random_lesion(
    rng: np.random.Generator, volume: PhantomVolume, long: float, short: float, depth: float, others: Sequence[Blob]
) -> list[Blob]:
    """A lesion in soft tissue, away from the others; none if there is no room."""
    body, interval = volume.body, volume.slice_interval
    gap = max(GAP, 2 * volume.pixel)
    angle, hu = rng.uniform(0, math.pi), rng.uniform(110, 160)
    for _ in range(TRIES):
        x, y, z = _random_place(rng, body)
        k = round(z / interval)
        z = k * interval + min(max(z - k * interval, -depth / 2), depth / 2)  # so that a slice cuts its middle half
        levels = z + depth * np.array([-1.0, 0.0, 1.0])
        if levels[0] < 0 or levels[2] > body.length or not body.is_free(x, y, levels, long, (*BONES, LUNG)).all():
            continue
        near = [
            math.dist((x, y, z), (other.x, other.y, other.z)) < max(long, depth) + max(other.long, other.depth) + gap
            for other in others
        ]
        lesion = Blob(x, y, z, long, short, angle, hu, z - depth, z + depth, (depth, depth))
        if not any(near) and labels(replace(volume, lesions=(lesion,)), k).any():
            return [lesion]
    return []


def _random_vessel(
    rng: np.random.Generator, volume: PhantomVolume, long: float, short: float, lesions: Sequence[Blob]
) -> list[Blob]:
    """A vessel along the body, oblique or across it, away from lesions; none if there is no room."""
    body = volume.body
    angle, hu = rng.uniform(0, math.pi), rng.uniform(110, 160)
    kind = rng.choice(["along", "oblique", "across"], p=[0.4, 0.4, 0.2])
    for _ in range(TRIES):
        x, y, z = _random_place(rng, body)
        if kind == "across":  # an ellipsoid as well, so that its ends are round
            reach = rng.uniform(SHORTEST_VESSEL / 2, 90)
            angle = rng.uniform(0, math.pi)
            ends = (reach - short) * np.array([-1.0, 1.0])
            levels = np.full(2, z)
            if not body.is_free(x + ends * math.cos(angle), y + ends * math.sin(angle), levels, short, BONES).all():
                continue
            vessel = Blob(x, y, z, reach, short, angle, hu, z - short, z + short, (short, short))
        else:
            slope = math.tan(math.radians(rng.uniform(0, 10) if kind == "along" else rng.uniform(10, 70)))
            heading = rng.uniform(0, 2 * math.pi)
            drift = slope * math.cos(heading), slope * math.sin(heading)
            endless = Blob(x, y, z, long, short, angle, hu, -math.inf, math.inf, (1.0, 1.0), drift)
            first, last = _way(body, endless)
            if (last - first) * math.hypot(1, slope) < SHORTEST_VESSEL:
                continue
            taper = min(rng.uniform(1.5, 3) * long, 0.3 * (last - first))
            vessel = replace(endless, first=first, last=last, tapers=(taper, taper))
        if not any(_are_near(vessel, lesion, volume.pixel) for lesion in lesions):
            return [vessel]
    return []


def _random_branch(
    rng: np.random.Generator, volume: PhantomVolume, parent: Blob, lesions: Sequence[Blob]
) -> list[Blob]:
    """A thinner vessel that leaves another one; none if there is no room."""
    body = volume.body
    first, last = max(parent.first, 0.0), min(parent.last, body.length)
    for _ in range(TRIES // 10):
        z = rng.uniform(first, last)
        thinner = rng.uniform(0.6, 0.85) * float(parent.size(np.float64(z)))
        slope, heading = math.tan(math.radians(rng.uniform(20, 60))), rng.uniform(0, 2 * math.pi)
        x, y = parent.centre(z)
        drift = slope * math.cos(heading), slope * math.sin(heading)
        endless = replace(
            parent, x=x, y=y, z=z, long=parent.long * thinner, short=parent.short * thinner, drift=drift,
            first=-math.inf, last=math.inf, tapers=(1.0, 1.0),
        )  # fmt: skip
        above, below = _way(body, endless)
        up = rng.random() < 0.5
        length = (z - above if up else below - z) * math.hypot(1, slope)
        if length < SHORTEST_VESSEL / 2 or thinner * parent.short < volume.pixel / 2:
            continue
        taper = min(2 * endless.long, 0.3 * length / math.hypot(1, slope))
        # It begins within the parent, so that nobody sees where.
        ways = {"first": above, "last": z, "tapers": (taper, 1.0)} if up else {"first": z, "last": below}
        branch = replace(endless, **{"tapers": (1.0, taper), **ways})
        if not any(_are_near(branch, lesion, volume.pixel) for lesion in lesions):
            return [branch]
    return []


def _way(body: Body, blob: Blob) -> tuple[float, float]:
    """From where to where in z a tube stays within the body, from its centre; infinite where it passes the end of the
    volume; (z, z) if its centre has no room."""
    z = np.arange(0.0, body.length + 1)
    x, y = blob.centre(z)
    out = np.flatnonzero(~body.is_free(x, y, z, blob.long, BONES))
    here = int(np.clip(round(blob.z), 0, len(z) - 1))
    if here in out:
        return blob.z, blob.z
    before, after = out[out < here], out[out > here]
    return (float(z[before[-1]]) if len(before) else -math.inf), (float(z[after[0]]) if len(after) else math.inf)


def _are_near(vessel: Blob, lesion: Blob, pixel: float) -> bool:
    """Whether a vessel touches a lesion or what is close to it, in the axial planes of the lesion."""
    gap = max(GAP, 2 * pixel)
    z = np.linspace(lesion.first - gap, lesion.last + gap, 15)
    z = z[(vessel.first - gap < z) & (z < vessel.last + gap)]
    if not len(z):
        return False
    cx, cy = vessel.centre(z)
    # An ellipse lies within the discs of its short radius along the rest of its long one.
    along = np.array([math.cos(vessel.angle), math.sin(vessel.angle)])
    away = np.stack([lesion.x - cx, lesion.y - cy], axis=-1)
    rest = vessel.long - vessel.short
    nearest = np.clip(away @ along, -rest, rest)[:, None] * along
    distance = np.linalg.norm(away - nearest, axis=-1)
    return bool((distance < lesion.long + vessel.short + gap).any())
