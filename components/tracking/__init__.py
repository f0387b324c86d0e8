"""Everything that imports mlflow."""

import os

# MLflow reports its own usage to its makers unless this is set before its import; a search talks to its own server only.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
