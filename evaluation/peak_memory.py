"""Peak memory of the process and its GPUs, sampled ten times a second."""

import anyio
import psutil

from .records import MemoryUse

__all__ = ["PeakMemory"]

SECONDS = 0.1


class PeakMemory:
    """The peak since its creation: sampled for the process, exact for GPUs."""

    def __init__(self) -> None:
        import torch

        self._process = psutil.Process()
        self._cuda = torch.cuda
        self._gpus = range(torch.cuda.device_count())
        self._rss = 0
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def sample(self) -> MemoryUse:
        """Take a sample and return the peak so far, in bytes."""
        self._rss = max(self._rss, self._process.memory_info().rss)
        return MemoryUse(rss=self._rss, gpu=sum(self._cuda.max_memory_allocated(gpu) for gpu in self._gpus))

    async def keep_sampling(self) -> None:
        """Take samples until cancelled."""
        while True:
            self.sample()
            await anyio.sleep(SECONDS)
