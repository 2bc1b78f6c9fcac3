"""Delete Serve applications. Run as a Ray job:  python -m services.engines.delete APP [APP ...]"""

import sys

import ray

from services.engines.replicas import delete_apps


def main(apps: list[str]) -> None:
    """Attach to the cluster, delete, leave."""
    ray.init(address="auto", log_to_driver=False, configure_logging=False)
    delete_apps(apps)


if __name__ == "__main__":
    main(sys.argv[1:])
