"""Ray as the service's control loops see it, played by objects that a test can read and set."""

from services.control.ray_jobs import DriverEnd, DriverStatus, RayDrivers, RayUnavailableError, SubmissionRefusedError


class ScriptedDrivers:
    """Drivers with the status that the test sets. As with Ray, one that was asked to stop still runs for a while."""

    def __init__(self):
        self.statuses = {}
        self.ends = {}
        self.refusal = None
        self.has_head = True
        self.stopped = []
        self.deleted = []
        self.total = {"CPU": 4}

    def cluster_resources(self):
        return self.total

    def start_chat(self, app, checkpoint, model):
        self.statuses[app] = DriverStatus.RUNNING

    def status(self, submission):
        return self.statuses.get(submission)

    def ping(self):
        if not self.has_head:
            raise RayUnavailableError("Ray's head node is not alive")

    def end_of(self, submission):
        return self.ends.get(submission, DriverEnd("Job entrypoint command failed with exit code -9"))

    def submit(self, submission, job_id, attempt):
        assert submission not in self.statuses, f"Ray refuses {submission}, which it has seen"
        if self.refusal is not None:
            raise SubmissionRefusedError(self.refusal)
        self.statuses[submission] = DriverStatus.RUNNING

    def stop(self, submission):
        self.stopped.append(submission)

    def delete_engines(self, apps):
        self.deleted += apps


class ScriptedCluster:
    """Ray as far as the chat engine needs it; the test sets how far a start is."""

    def __init__(self):
        self.start_status = DriverStatus.RUNNING
        self.started, self.stopped, self.deleted = [], [], []

    def status(self, submission_id):
        return self.start_status

    def start_chat(self, app, checkpoint, model):
        self.started.append((app, checkpoint, model))

    def error_tail(self, submission_id):
        return "ValueError: no such architecture"

    def stop(self, submission_id):
        self.stopped.append(submission_id)

    def delete_engines(self, apps):
        self.deleted += apps

    def cluster_resources(self):
        return {"CPU": 4.0}


class QuietRay:
    """Ray that answers and starts nothing: jobs end at the queue."""

    def cluster_resources(self):
        return {"CPU": 4.0}

    def submit(self, submission, job_id, attempt):
        return None

    def status(self, submission):
        return None


def put_in_place_of_ray(monkeypatch, ray):
    """Every `RayDrivers` made from now on answers as `ray` does, as far as `ray` can, and its dashboard is there."""
    monkeypatch.setattr(RayDrivers, "ping", lambda self: None)
    for name in ("cluster_resources", "submit", "status", "start_chat", "error_tail", "delete_engines"):
        if hasattr(ray, name):
            monkeypatch.setattr(RayDrivers, name, getattr(ray, name))
