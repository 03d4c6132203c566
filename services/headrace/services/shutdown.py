"""The two signals of a process that is asked to end: the first is polite, the second is not."""

import asyncio
import signal


class Shutdown:
    """Notes SIGTERM and SIGINT. Create it on the process's event loop."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        """Set by the first signal."""
        self.hurry = asyncio.Event()
        """Set by the second one: do not wait for anybody."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request)

    def request(self) -> None:
        """Asks the process to end; asking again makes it hurry."""
        if self.requested.is_set():
            self.hurry.set()
        self.requested.set()

    async def wait(self) -> None:
        """Waits for the first signal."""
        await self.requested.wait()

    async def wait_hurry(self) -> None:
        """Waits for the second signal."""
        await self.hurry.wait()
