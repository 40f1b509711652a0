"""A judge that follows a rule on clips: for tests, and as a labelled arm beside models and people.

Its answers come from what is measured. A search that uses it does optimise that measure, so its
results must not be shown as those of a judge who looks.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from projects.reward_llm.judge.judging import Reading
from projects.reward_llm.judge.preferences import Clip, JudgeError


@dataclasses.dataclass(frozen=True)
class RuleJudge:
    """Prefers the clip of the higher score. Its faults are planted, and repeat with the seed."""

    score: Callable[[Clip], float]
    name: str = "rule"
    margin: float = 0.0  # scores that differ by no more are a tie
    place_bias: float = 0.0  # probability to say A whatever the clips are
    noise: float = 0.0  # probability to say A or B by chance
    seed: int = 0

    def __post_init__(self):
        if not (0.0 <= self.place_bias and 0.0 <= self.noise <= 1.0 - self.place_bias):
            raise JudgeError("place_bias and noise are probabilities of a sum up to 1")

    def read(self, presentations: Sequence[tuple[Clip, Clip]]) -> list[Reading]:
        return [self._read(a, b) for a, b in presentations]

    def _read(self, a: Clip, b: Clip) -> Reading:
        # Chance depends on the presentation alone, not on which others the batch holds.
        names = [zlib.crc32(clip.id.encode()) for clip in (a, b)]
        chance = np.random.default_rng([self.seed, *names])
        fate, side = chance.random(2)
        if fate < self.place_bias:
            return Reading("A")
        if fate < self.place_bias + self.noise:
            return Reading("A" if side < 0.5 else "B")
        difference = self.score(a) - self.score(b)
        if not abs(difference) > self.margin:  # also where a score is not a number
            return Reading("tie")
        return Reading("A" if difference > 0 else "B")
