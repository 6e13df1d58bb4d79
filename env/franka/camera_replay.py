"""A camera of a recorded episode."""

from __future__ import annotations

from env.franka.episode import Episode, row_at
from env.franka.types import Clock, Frame


class ReplayCamera:
    """A ``Camera`` that shows what ``episode`` has in ``obs/<name>_image``, which is what its policy saw: cut and made small already.

    Time is that of ``clock`` since ``start``; after the last picture nothing new comes, as from a frozen camera.
    """

    def __init__(self, name: str, episode: Episode, clock: Clock) -> None:
        self.name, self._clock = name, clock
        self._images, self._times = episode.column(f"obs/{name}_image"), episode.times()
        self._begin = clock.now()

    def start(self) -> None:
        self._begin = self._clock.now()

    def latest(self) -> Frame:
        row = row_at(self._times, self._clock.now() - self._begin)
        return Frame(self._images[row], self._begin + self._times[row], row)

    def close(self) -> None: ...
