# Read by every shell on every machine of cluster.yaml and onprem.yaml, Ray's own among them.
# Secrets do not stand here: they come from ~/.raymix.env, which is in no checkout.

if test -f ~/venv/bin/activate; then . ~/venv/bin/activate; fi
if test -f ~/.raymix.env; then set -a; . ~/.raymix.env; set +a; fi

# Nobody talks to this cluster without the token in ~/.ray/auth_token.
export RAY_AUTH_MODE=token

# Models, data sets and tokenised data are fetched and made once for all machines.
export HF_HOME=/shared/cache/huggingface
export RAYMIX_CACHE=/shared/cache/raymix

# MLflow's server runs beside the driver, on the head; see head_start_ray_commands.
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000

# `ray submit` copies one script to the head's home: what it imports from beside it is here.
export PYTHONPATH=~/raymix/experiments

# A relative path means the same file to the driver and to all workers.
if mountpoint -q /shared; then cd /shared; fi
