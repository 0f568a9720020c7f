"""Numbers as people read them: bytes, counts and durations."""

__all__ = ["format_bytes", "format_count", "format_duration"]


def format_bytes(number: float) -> str:
    """Format bytes in the largest decimal unit that fits: `1.23 GB`, `4.5 MB`, `67.8 kB`, `9 B`."""
    if number >= 1e9:
        return f"{number / 1e9:.2f} GB"
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def format_count(number: int) -> str:
    """Format a number of parameters: `1.2 B`, `34.5 M`, or exact below a million: `999,999`."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"


def format_duration(seconds: float) -> str:
    """Format a duration to two digits or so: `4 s`, `14 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
