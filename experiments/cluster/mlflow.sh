#!/usr/bin/env bash
# Starts MLflow's server on this machine, for this machine only, unless it runs already.
# Its database is on the head's own disk: SQLite must not be on NFS.
set -euo pipefail
if curl --silent --fail --output /dev/null http://127.0.0.1:5000/health; then exit 0; fi
mkdir -p ~/mlflow
cd ~/mlflow
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false setsid nohup ~/venv/bin/mlflow server \
    --host 127.0.0.1 --port 5000 --workers 2 \
    --backend-store-uri sqlite:///mlflow.db \
    --artifacts-destination /shared/mlartifacts \
    > server.log 2>&1 < /dev/null &
