"""The comparison reports of a folder, and tickets to view them."""

from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from time import monotonic
from typing import Any

from ..errors import ApiError

__all__ = ["VIEW", "Reports"]

LIFE = 120.0  # seconds of a ticket
MOST_TICKETS = 200
MOST_BYTES = 200_000_000
VIEW = "/reports/view/"


@dataclass(eq=False)
class Reports:
    """The reports of a folder, and the tickets to view them."""

    folder: Path | None
    _tickets: dict[str, tuple[str, float]] = field(default_factory=dict)  # file names and times of expiry

    def listing(self) -> list[dict[str, Any]]:
        """List the folder's reports, newest first."""
        reports = [(path, path.stat()) for path in self._files()]
        reports.sort(key=lambda report: report[1].st_mtime, reverse=True)
        return [{"name": path.name, "modified": stat.st_mtime, "bytes": stat.st_size} for path, stat in reports]

    def ticket(self, name: str) -> str:
        """Return a ticket to view a report. Raises ApiError if there is no such report."""
        if name not in {path.name for path in self._files()}:
            raise ApiError(404, f"there is no report {name[:100]!r}", "report_not_found")
        now = monotonic()
        alive = [(ticket, entry) for ticket, entry in self._tickets.items() if entry[1] > now]
        self._tickets = dict(alive[-MOST_TICKETS + 1 :])
        ticket = token_urlsafe(24)
        self._tickets[ticket] = (name, now + LIFE)
        return ticket

    def read(self, ticket: str) -> bytes:
        """Return the report of a ticket. Raises ApiError."""
        name, end = self._tickets.get(ticket, ("", 0.0))
        path = next((path for path in self._files() if path.name == name and end > monotonic()), None)
        if path is None:
            raise ApiError(404, "this address of a report is no longer valid; open it again", "report_not_found")
        return path.read_bytes()

    def _files(self) -> list[Path]:
        """The HTML files right in the folder; links that lead out of it are left out."""
        if self.folder is None:
            raise ApiError(404, "this server shows no reports; start it with --reports FOLDER", "no_reports")
        try:
            root = self.folder.resolve()
            files = [path for path in root.glob("*.html") if path.resolve().parent == root and path.is_file()]
            return [path for path in files if path.stat().st_size <= MOST_BYTES]
        except OSError as error:
            raise ApiError(503, "the folder of the reports can't be read", "no_reports") from error
