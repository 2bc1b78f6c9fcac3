"""Seconds and bytes as a person reads them."""


def duration(seconds: float) -> str:
    """0.42 -> "0.4 s", 65 -> "65 s", 600 -> "10 min", 7500 -> "2.1 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def gigabytes(num_bytes: int) -> str:
    """1,234,000,000 -> "1.2 GB"; less than that in MB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def clock_time(seconds: float) -> str:
    """3725 -> "1:02:05", 65 -> "1:05"; less than nothing is "0:00"."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
