"""Who may read weights: safetensors writes its files for their owner alone, whatever the umask says."""

import tempfile
from pathlib import Path


def share_weights(folder: Path) -> None:
    """Give the weights in a folder the mode that other new files get, so that whoever reads the configuration can read
    them too."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # Asking for the umask means setting it, for all threads.
        probe = Path(scratch) / "probe"
        probe.touch()
        mode = probe.stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)
