"""Skin: a procedural reflectance map in the UV plane.

Two pigments vary over the face; everything that is no skin (hairs, lipstick, eyes, teeth) is
painted over them.
"""

import cv2
import numpy as np

from cest.data.synthetic.chart import Brow, Eye, FaceChart
from cest.data.synthetic.complexion import Complexion, skin_colour, to_srgb
from cest.data.synthetic.noise import fractal, smoothstep

Array = np.ndarray

IRIS = ((0.16, 0.09, 0.05), (0.28, 0.17, 0.08), (0.33, 0.31, 0.18), (0.33, 0.43, 0.52))
"""sRGB albedo of irises: dark brown, brown, hazel, blue."""


class SkinPainter:
    """Paints reflectance maps onto a chart.

    Everything that is the same for all people is computed once; a painter may be shared by
    threads.
    """

    def __init__(self, chart: FaceChart) -> None:
        self.chart = chart
        y, z = chart.position[..., 1], chart.position[..., 2]
        self.cheeks = chart.blob(0.36, 0.10, 0.16, 0.13)
        self.nose = chart.blob(0, 0.05, 0.12, 0.09, mirrored=False) * smoothstep(0.2, 0.32, z)
        self.chin = chart.blob(0, -0.52, 0.14, 0.08, mirrored=False)
        self.forehead = smoothstep(0.68, 0.8, y)
        self.tear_trough = chart.blob(0.24, 0.315, 0.12, 0.045)
        # Hollows that stay dark in any light, in every face.
        self.hollows = (
            chart.crease([(0.135, 0.075), (0.165, 0.03), (0.15, -0.01)], 0.012)
            + 0.5 * chart.crease([(0.03, -0.05), (0.03, -0.12)], 0.010)
            + 0.6 * chart.blob(0, -0.42, 0.11, 0.02, mirrored=False)
            + 0.4 * chart.blob(0.13, 0.16, 0.03, 0.12)
            + 0.4 * chart.blob(0.20, 0.52, 0.06, 0.03)
        )
        # From nose and mouth downwards, between the brows, and at the outer corners of the eyes.
        self.creases = (
            chart.crease([(0.16, 0.06), (0.25, -0.06), (0.31, -0.2), (0.32, -0.3)], 0.014)
            + 0.6 * chart.crease([(0.27, -0.27), (0.30, -0.4)], 0.014)
            + 0.8 * chart.crease([(0.045, 0.5), (0.04, 0.66)], 0.010)
        )
        for dy in (-0.09, -0.02, 0.05):
            line = [(0.47, 0.41 + dy * 0.3), (0.58, 0.39 + dy)]
            self.creases += 0.9 * chart.crease(line, 0.006)
        # Where the lips meet they are darkest.
        self.lip_line = chart.lips * np.exp(-np.abs(chart.lip_height) / 0.012)
        self.nostrils = chart.blob(0.068, -0.018, 0.026, 0.014) * smoothstep(0.33, 0.30, z)
        self.lid_region = [smoothstep(0.14, 0.0, eye.lid) for eye in chart.eyes]
        self.ball = chart.eyes[0].ball + chart.eyes[1].ball
        self.is_skin = np.clip(1 - chart.lips - chart.mouth - self.ball, 0, 1)
        self.beard_map = beard_region(chart.position) * np.clip(1 - chart.lips - chart.mouth, 0, 1)
        self.freckle_region = np.clip(self.cheeks + 1.2 * self.nose + 0.35 * self.forehead, 0, 1)

    def paint(self, person: Complexion, rng: np.random.Generator) -> Array:
        """One person's reflectance map A: (S, S, 3) float32 sRGB in [0, 1]."""
        melanin, blood = self._pigments(person, rng)
        linear = skin_colour(np.clip(melanin, 0, None), np.clip(blood, 0, None))
        colour = to_srgb(linear)
        self._make_up(colour, person, rng)
        self._beard(colour, person, rng)
        self._brows(colour, person, rng)
        for eye in self.chart.eyes:
            self._lashes(colour, eye, person)
        self._inside_of_mouth(colour, rng)
        self._eyes(colour, rng, person)
        return np.clip(colour, 0.005, 0.98)

    # -- skin ------------------------------------------------------------------------------------

    def _pigments(self, person: Complexion, rng: np.random.Generator) -> tuple[Array, Array]:
        chart, size = self.chart, self.chart.size
        dark = min(person.melanin / 2, 1)
        grain = fractal(rng, size, size // 4, 3, 0.8)
        mottle, ruddy = fractal(rng, size, 5, 4, 0.6), fractal(rng, size, 6, 4, 0.6)
        melanin = (
            person.melanin * (1 + 0.04 * mottle) + 0.05 * mottle + rng.uniform(0.012, 0.045) * grain
        )
        blood = person.blood + 0.06 * ruddy + 0.02 * np.roll(grain, size // 3, 0)
        flush = rng.uniform(0.05, 0.45) * (1 - 0.5 * dark)
        blood += flush * (self.cheeks + 0.7 * self.nose + 0.35 * self.chin)
        melanin += (0.04 + 0.10 * dark) * self.forehead * rng.uniform(0, 1)
        # Thin skin of the lids, shadows under them.
        for eye, region in zip(chart.eyes, self.lid_region):
            blood[eye.window] += rng.uniform(0.05, 0.25) * region[eye.window]
            depth = rng.uniform(0.02, 0.14) + 0.12 * dark
            melanin[eye.window] += depth * region[eye.window]
        melanin += (0.04 + 0.12 * person.age) * rng.uniform(0.3, 1.2) * self.tear_trough
        blood += 0.12 * rng.uniform(0, 1) * self.tear_trough

        # Lips: no horny layer, much blood, fine vertical lines.
        lines = fractal(rng, (4, size), size // 3, 1)[0]
        lines = 1 + 0.12 * lines[None, :] * (chart.lips > 0.02)
        lip_blood = rng.uniform(0.55, 1.1) * (1 - 0.35 * dark)
        blood += chart.lips * lip_blood * lines
        melanin += chart.lips * (rng.uniform(-0.02, 0.12) + 0.25 * dark)
        melanin += 0.35 * self.lip_line

        creases = self.creases
        if person.age > 0.25:
            lines = np.sin(chart.position[..., 1] * 75 + 2.2 * fractal(rng, size, 3, 2))
            creases = creases + 0.45 * self.forehead * smoothstep(0.55, 1.0, lines)
        depth = 0.04 + 0.24 * person.age**1.5
        melanin += depth * creases * self.is_skin
        blood += 0.4 * depth * creases * self.is_skin
        melanin += rng.uniform(0.05, 0.22) * self.hollows * self.is_skin
        blood += rng.uniform(0, 0.15) * self.hollows * self.is_skin
        melanin += 1.6 * self.nostrils
        blood += 0.8 * self.nostrils
        self._spots(melanin, blood, person, rng)
        return melanin, blood

    def _spots(
        self, melanin: Array, blood: Array, person: Complexion, rng: np.random.Generator
    ) -> None:
        """Freckles, moles, blemishes, and the age spots of old skin; in place."""
        size = self.chart.size
        if rng.random() < 0.3 * (1 - min(person.melanin, 1)):
            cells = fractal(rng, size, size // 5, 2, 0.7)
            freckles = smoothstep(1.0, 2.0, cells + 0.4 * fractal(rng, size, 8, 2))
            melanin += rng.uniform(0.15, 0.5) * freckles * self.freckle_region
        if person.age > 0.4:
            stains = smoothstep(1.2, 2.2, fractal(rng, size, 24, 3))
            melanin += 0.35 * person.age**2 * stains * self.is_skin
        for pigment, count, depth, radius in (
            (melanin, rng.poisson(2.0), (0.4, 1.6), (0.006, 0.016)),
            (blood, rng.poisson(3.0) * (rng.random() < 0.5), (0.2, 0.8), (0.01, 0.025)),
        ):
            for _ in range(count):
                centre = rng.uniform(0.12, 0.88, 2) * size
                r = rng.uniform(*radius) * self.chart.scale
                _add_spot(pigment, centre, r, rng.uniform(*depth))

    # -- what is painted over it -----------------------------------------------------------------

    def _make_up(self, colour: Array, person: Complexion, rng: np.random.Generator) -> None:
        if not person.makeup:
            return
        chart = self.chart
        lipstick = np.float32(
            [rng.uniform(0.45, 0.85), rng.uniform(0.08, 0.42), rng.uniform(0.12, 0.45)]
        )
        _cover(colour, lipstick, chart.lips * person.makeup * rng.uniform(0.2, 0.85))
        shadow = np.float32(rng.uniform(0.12, 0.6, 3))
        for eye, region in zip(chart.eyes, self.lid_region):
            lids, upper, near, lid = eye.around_lids(colour, eye.upper, region, eye.lid)
            _cover(lids, shadow, near * upper * person.makeup * 0.45)
            liner = np.exp(-(((lid - 0.008) / 0.009) ** 2)) * (0.4 + 0.6 * upper)
            _cover(lids, np.float32([0.06, 0.05, 0.05]), liner * person.makeup * 0.8)
        blush = np.float32([0.75, 0.35, 0.33])
        _cover(colour, blush, 0.25 * person.makeup * self.cheeks * rng.uniform(0, 1))

    def _beard(self, colour: Array, person: Complexion, rng: np.random.Generator) -> None:
        if not person.beard:
            return
        size = self.chart.size
        style = rng.random()
        x, y = np.abs(self.chart.position[..., 0]), self.chart.position[..., 1]
        region = self.beard_map
        if style < 0.2 and person.beard > 0.35:  # moustache and chin only
            region = region * smoothstep(0.36, 0.28, x)
        elif style < 0.3 and person.beard > 0.35:  # moustache
            region = region * smoothstep(0.33, 0.28, x) * smoothstep(-0.27, -0.22, y)
        hairs = fractal(rng, size, size // 2, 2, 0.9)
        hairs = cv2.GaussianBlur(hairs, (0, 0), sigmaX=0.4, sigmaY=1.1)
        patches = fractal(rng, size, 8, 3)
        if person.beard <= 0.35:
            # Shaven: the roots shine through, bluish; then single hairs.
            strength = person.beard * (0.9 + 0.25 * patches + 0.7 * hairs)
        else:
            strength = person.beard * (1.05 + 0.2 * patches) + 0.16 * hairs
        tint = person.hair * np.float32([0.92, 0.96, 1.05])
        shade = np.clip(1 + 0.25 * hairs, 0.4, 1.8)[..., None]
        _cover(colour, tint * shade, np.clip(strength, 0, 0.95) * region)

    def _brows(self, colour: Array, person: Complexion, rng: np.random.Generator) -> None:
        density, height = rng.uniform(0.65, 1.05), rng.uniform(0.020, 0.048)
        if person.makeup:
            height *= 0.85
        rise = rng.normal(-0.012, 0.008)
        for brow in self.chart.brows:  # alike, but not the same
            own = density * np.exp(rng.normal(0, 0.06)), height * np.exp(rng.normal(0, 0.08))
            self._brow(colour, brow, person, *own, rise + rng.normal(0, 0.003), rng)

    def _brow(
        self,
        colour: Array,
        brow: Brow,
        person: Complexion,
        density: float,
        height: float,
        rise: float,
        rng: np.random.Generator,
    ) -> None:
        """density: share of the skin that is covered; height, rise: dm."""
        along, above = (part[brow.window] for part in (brow.along, brow.above))
        above = above - np.float32(rise)
        # Full in the inner two thirds, thinning out into the tail; edges of single hairs.
        profile = np.interp(along, [-0.05, 0.1, 0.6, 1.08], [0.75, 1, 0.9, 0.15])
        profile = np.float32(height) * profile.astype(np.float32)
        # Hairs rise at the inner end and lie along the brow at the tail.
        lean = np.interp(along, [0, 0.3, 1], [0.2, 1.0, 1.6]).astype(np.float32)
        strands = rng.standard_normal((64, 256), dtype=np.float32)
        strands = cv2.GaussianBlur(strands, (0, 0), sigmaX=0.7, sigmaY=4)
        strands /= strands.std()
        lookup = cv2.remap(
            strands,
            ((along * 130 - lean * above * 200 + 80) % 255).astype(np.float32),
            ((above * 110) % 63).astype(np.float32),
            cv2.INTER_LINEAR,
        )
        edge = profile - np.abs(above) + 0.004 * lookup
        cover = smoothstep(-0.014, 0.022, edge) * smoothstep(-0.12, 0.06, along)
        cover *= smoothstep(1.2, 0.9, along) * np.clip(density * (0.8 + 0.16 * lookup), 0, 1)
        tint = person.hair * np.float32(0.75 if person.hair.mean() > 0.3 else 1.0)
        _cover(colour[brow.window], tint, 0.93 * cover)

    def _lashes(self, colour: Array, eye: Eye, person: Complexion) -> None:
        dark = np.minimum(person.hair * 0.5, 0.1)
        lids, upper, lid, ball = eye.around_lids(colour, eye.upper, eye.lid, self.ball)
        # On the very edge of the lids; the upper ones are thicker.
        line = np.exp(-(((lid - 0.002) / 0.009) ** 2)) * (0.18 + 0.62 * upper)
        _cover(lids, dark, line * (0.85 + 0.15 * person.makeup))
        wet = smoothstep(0.0, -0.01, lid) * (1 - ball)
        _cover(lids, np.float32([0.55, 0.33, 0.30]) * (0.7 + 0.3 * lids.mean()), 0.8 * wet)
        # The fold above the lid.
        fold = np.exp(-(((lid - 0.05) / 0.010) ** 2)) * upper
        lids *= (1 - 0.22 * fold)[..., None]

    def _inside_of_mouth(self, colour: Array, rng: np.random.Generator) -> None:
        """The face model closes the mouth by a sheet a little behind the lips: teeth and tongue."""
        chart = self.chart
        colour, mouth, height, position = (
            part[chart.mouth_window]
            for part in (colour, chart.mouth, chart.lip_height, chart.position)
        )
        x, z = position[..., 0], position[..., 2]
        sheet = mouth * smoothstep(0.236, 0.226, z)
        _cover(colour, np.float32([0.34, 0.15, 0.14]), mouth)
        _cover(colour, np.float32([0.09, 0.04, 0.04]), sheet)
        tongue = smoothstep(-0.02, -0.05, height) * smoothstep(0.16, 0.08, np.abs(x))
        _cover(colour, np.float32([0.45, 0.20, 0.19]), sheet * tongue * rng.uniform(0.2, 0.9))
        gaps = smoothstep(0.0, 0.3, np.abs(np.sin(x * np.pi / 0.075)))
        row = (0.7 + 0.3 * gaps) * smoothstep(0.19, 0.14, np.abs(x))
        upper = smoothstep(0.018, 0.030, height - rng.normal(0, 0.008) - 0.25 * x**2)
        lower = smoothstep(-0.075, -0.088, height + rng.normal(0, 0.008) + 0.25 * x**2)
        white = np.float32([0.86, 0.82, 0.74]) * np.float32(rng.uniform(0.75, 1.05))
        _cover(colour, white, sheet * row * np.clip(upper + rng.uniform(0, 0.8) * lower, 0, 1))

    def _eyes(self, colour: Array, rng: np.random.Generator, person: Complexion) -> None:
        weights = np.array([1.5, 1.0, 0.6, 0.6]) * [1, 1, *[1 - 0.9 * min(person.melanin, 1)] * 2]
        iris_colour = np.float32(IRIS[rng.choice(4, p=weights / weights.sum())])
        iris_colour = iris_colour * np.float32(np.exp(rng.normal(0, 0.2)))
        gaze = rng.normal(0, (0.09, 0.05))
        radius, pupil = rng.uniform(0.44, 0.50), rng.uniform(0.14, 0.22)
        white = np.float32([0.70, 0.66, 0.63]) * np.float32(rng.uniform(0.8, 1.1))
        for eye in self.chart.eyes:
            inside = eye.ball > 0
            right, up = eye.right[inside] - gaze[0], eye.up[inside] - gaze[1]
            r = np.hypot(right, up)
            angle = np.arctan2(up, right)
            ground = np.repeat(white[None], len(r), 0)
            red = np.clip(
                0.06
                + 0.03 * rng.standard_normal(len(r), dtype=np.float32)
                + 0.2 * np.abs(eye.right[inside]),
                0,
                0.4,
            )
            ground *= 1 - red[:, None] * np.float32([0.3, 1, 1])
            rays = 1 + 0.16 * np.sin(23 * angle) + 0.12 * np.sin(41 * angle + 1)
            lit = rays * np.interp(r / radius, [0, 0.5, 0.8, 1], [1.3, 1.15, 0.85, 0.35])
            _cover(ground, iris_colour * lit[:, None], smoothstep(radius + 0.03, radius - 0.03, r))
            _cover(
                ground, np.float32([0.02, 0.02, 0.02]), smoothstep(pupil + 0.03, pupil - 0.03, r)
            )
            # The upper lid and its lashes take light from the eye.
            ground *= (1 - 0.35 * smoothstep(0.1, 0.5, eye.up[inside]))[:, None]
            colour[inside] = ground


def beard_region(position: Array) -> Array:
    """Where a beard grows, 0 to 1, at points (..., 3) of the mean head: also under the chin."""
    x, y, z = np.abs(position[..., 0]), position[..., 1], position[..., 2]
    # From the sideburns down the cheek to the corner of the mouth, and over the lip.
    cheek_line = np.interp(x, [0, 0.13, 0.2, 0.34, 0.5, 0.6, 0.72], [-0.03, -0.03, -0.07, -0.22,
                                                                   -0.1, 0.15, 0.5])  # fmt: skip
    below = smoothstep(0.03, -0.06, y - cheek_line)
    neck = smoothstep(-0.85, -0.68, y)
    throat = smoothstep(-0.6, -0.3, z + 0.4 * x)
    bare = np.exp(-((x / 0.05) ** 2)) * np.exp(-(((y + 0.40) / 0.03) ** 2))
    return (below * neck * throat * (1 - 0.6 * bare)).astype(np.float32)


def _cover(colour: Array, paint: Array, alpha: Array) -> None:
    """Paints (3,) or (..., 3) over ``colour`` (..., 3), in place."""
    on = alpha > 1 / 256
    under = colour[on]
    over = paint if paint.ndim == 1 else paint[on]
    colour[on] = under + np.minimum(alpha[on], 1)[:, None] * (over - under)


def _add_spot(pigment: Array, centre: Array, radius: float, depth: float) -> None:
    reach = int(np.ceil(3 * radius))
    column, row = (int(c) for c in centre)
    window = np.s_[
        max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1
    ]
    y, x = np.mgrid[window]
    distance = ((x + 0.5 - centre[0]) ** 2 + (y + 0.5 - centre[1]) ** 2) / radius**2
    pigment[window] += depth * np.exp(-(distance**2))
