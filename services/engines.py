"""Delete Serve applications. Run as a Ray job:  python -m services.engines APP [APP ...]"""

import sys

import ray
from ray import serve


def main(apps: list[str]) -> None:
    """Attach to the cluster, delete, leave."""
    ray.init(address="auto", log_to_driver=False, configure_logging=False)
    deployed = serve.status().applications
    for app in apps:
        if app in deployed:
            serve.delete(app)


if __name__ == "__main__":
    main(sys.argv[1:])
