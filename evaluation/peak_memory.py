"""The most memory that was held while something ran, seen by looking often."""

import anyio
import psutil

from .records import MemoryUse

__all__ = ["PeakMemory"]

SECONDS = 0.1


class PeakMemory:
    """The peak since it was made: of the process as far as somebody looked, of GPUs exactly."""

    def __init__(self) -> None:
        import torch

        self._process = psutil.Process()
        self._cuda = torch.cuda
        self._gpus = range(torch.cuda.device_count())
        self._rss = 0
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def look(self) -> MemoryUse:
        """The peak so far."""
        self._rss = max(self._rss, self._process.memory_info().rss)
        return MemoryUse(rss=self._rss, gpu=sum(self._cuda.max_memory_allocated(gpu) for gpu in self._gpus))

    async def keep_looking(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await anyio.sleep(SECONDS)
